-- RENEW: keep a lease alive while its load runs, and what may be served if it fails.
-- KEYS[1] the entry
-- ARGV    token, lease ms, grace ms
-- Reply   1 renewed | 0 the lease is gone
-- needs: prelude
local e = open(KEYS[1])
local c, lease = e.c, tonumber(ARGV[2])
if not c.l or c.l[3] ~= ARGV[1] then return 0 end
c.l[1], c.l[2] = now + lease, lease
outlive(e, lease + tonumber(ARGV[3]))
save(e)
return 1
