-- EXPIRE: the entry is stale from now on, and a load that began earlier may not make it fresh.
-- KEYS[1] the entry
-- ARGV    channel, echo
-- Reply   1 there was a value | 0 there was none
-- needs: prelude
local e = open(KEYS[1])
if e.foreign then
  redis.call('DEL', e.key)
else
  although_full(e)
  void(e)
  e.fresh = math.min(e.fresh, now)
  save(e)
end
tell(e, ARGV[1], ARGV[2])
return e.vlen > 0 and 1 or 0
