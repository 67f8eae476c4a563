-- STORE: put a value there by hand; the last writer wins, and a load under way may no longer fill.
-- KEYS[1] the entry
-- ARGV    envelope, fresh ms, stale ms, version ('' or fixed-width text), under, channel, echo
-- Reply   1 stored | 0 not stored: a write is under way | -1 not stored: older than the version floor
-- needs: prelude
local e = open(KEYS[1])
if is_old(e, ARGV[4], ARGV[5]) then return -1 end
void(e)
local free = written_until(e) == 0 and not e.foreign
if free then
  replace(e, ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5], 0)
else
  let_go(e)
  if ARGV[4] ~= '' and not e.foreign then raise_floor(e, ARGV[4], ARGV[5], FLOOR_MS) end -- it was written all the same
  redis.call('DEL', e.key)
  save(e)
end
tell(e, ARGV[6], ARGV[7])
return free and 1 or 0
