-- ADD: put a value there by hand if no usable one is there; a load under way may no longer fill.
-- KEYS[1] the entry
-- ARGV    token of this call, envelope, fresh ms, stale ms,
--         unusable (SHA-1 of a value that this caller cannot use, or ''), channel, echo
-- Reply   {1} stored | {0} not stored: a write is under way
--         | {2, now, header and value} not stored: there is a fresh value
-- needs: prelude
local e = open(KEYS[1])
if was_done(e, ARGV[1]) then return {1} end
if e.foreign then return {0} end
if is_fresh(e) and is_usable(e, ARGV[5]) then return {2, now, raw_of(e)} end
void(e)
local free = written_until(e) == 0
if free then
  remember(e, ARGV[1])
  replace(e, ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), '', '', 0)
else
  save(e)
end
tell(e, ARGV[6], ARGV[7])
return {free and 1 or 0}
