-- TOUCH: give a fresh entry a new TTL, within a quarantine if there is one.
-- KEYS[1] the entry
-- ARGV    fresh ms, stale ms, channel, echo
-- Reply   1 done | 0 there is no fresh entry
-- needs: prelude
local e = open(KEYS[1])
if not is_fresh(e) then return 0 end
local n, fresh, stale = e.c.n, tonumber(ARGV[1]), tonumber(ARGV[2])
local until_ms = quarantined(e, n and n[1] or '', n and n[2] or '')
if until_ms then fresh, stale = math.min(fresh, until_ms - now), 0 end
e.fresh, e.span, e.dead = now + fresh, fresh, now + fresh + stale
save(e)
tell(e, ARGV[3], ARGV[4])
return 1
