-- TOUCH: give a fresh entry a new TTL, within a quarantine if there is one.
-- KEYS[1] the entry
-- ARGV    fresh ms, stale ms, channel, echo
-- Reply   1 done | 0 there is no fresh entry
-- needs: prelude
local e = open(KEYS[1])
if not is_fresh(e) then return 0 end
local fresh, stale = tonumber(ARGV[1]), tonumber(ARGV[2])
if e.c.b then fresh, stale = math.min(fresh, e.c.b - now), 0 end
e.fresh, e.span, e.dead = now + fresh, fresh, now + fresh + stale
save(e)
tell(e, ARGV[3], ARGV[4])
return 1
