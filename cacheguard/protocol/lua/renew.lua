-- RENEW: keep a lease alive while its load runs.
-- KEYS[1] the entry
-- ARGV    token, lease ms, grace ms
-- Reply   1 renewed | 0 the lease is gone
-- needs: prelude
local now = server_now()
local K = KEYS[1]
local h = redis.call('HMGET', K, 't', 'v', 'g')
if h[1] ~= ARGV[1] then return 0 end
redis.call('HSET', K, 'u', now + tonumber(ARGV[2]))
local want, pttl = tonumber(ARGV[2]) + tonumber(ARGV[3]), redis.call('PTTL', K)
if pttl < want then
  if h[2] then redis.call('HSET', K, 'g', (tonumber(h[3] or '0') or 0) + want - pttl) end
  redis.call('PEXPIRE', K, want)
end
return 1
