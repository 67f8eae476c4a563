-- REPLACE: put a new value in the place of the one that was read. Its lifetime stays; a load under way may not fill.
-- KEYS[1] the entry
-- ARGV    token of this call, SHA-1 of the value that was read, envelope, channel, echo
-- Reply   {1} done | {0} there is no fresh value | {2, now, header and value} there is another one
-- needs: prelude
local e = open(KEYS[1])
if was_done(e, ARGV[1]) then return {1} end
if not is_fresh(e) then return {0} end
if redis.sha1hex(value_of(e)) ~= ARGV[2] then return {2, now, raw_of(e)} end
void(e)
local latest, until_ms = e.c.b, quarantined(e, '', '')
let_go(e)
e.c.b = latest
if until_ms then end_by(e, until_ms) end -- the value before may have been proven, this one is not
remember(e, ARGV[1])
e.born = now
put(e, ARGV[3])
tell(e, ARGV[4], ARGV[5])
return {1}
