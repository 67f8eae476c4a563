-- FILL: store what was loaded, if the lease it was loaded under still stands.
-- KEYS[1] the entry
-- ARGV    token, envelope, fresh ms, stale ms, version ('' or fixed-width text), under, until (server ms at which the
--         value ends at the latest, 0: none), channel
-- Reply   1 stored | 2 stored until the end of a quarantine only | 0 refused: the lease is gone
--         | -1 refused: older than the version floor
-- needs: prelude
local e = open(KEYS[1])
local c = e.c
if e.foreign or not c.l or c.l[3] ~= ARGV[1] then return 0 end
local version, under, fresh, stale, latest = ARGV[5], ARGV[6], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[7])
local awaited, proof = c.l[4] == 1, c.l[5]
-- The quarantine that it was loaded in is over: what a replica has answered may be old, and must be gone by now.
local too_late = proof and not c.q and not proves(version, under, proof, c.l[6])
c.l = nil
local reply
if is_old(e, version, under) then
  save(e)
  reply = -1
elseif too_late or (latest > 0 and latest <= now) then
  c.x = nil
  save(e)
  reply = 0
else
  c.x = nil
  reply = replace(e, ARGV[2], fresh, stale, version, under, latest) and 2 or 1
end
if awaited then wake(e, ARGV[8]) end
return reply
