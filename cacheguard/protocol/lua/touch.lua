-- TOUCH: give a fresh entry a new TTL.
-- KEYS[1] the entry
-- ARGV    fresh ms, stale ms, channel, message
-- Reply   1 done | 0 there is no fresh entry
local K = KEYS[1]
local h, pttl = redis.call('HMGET', K, 'v', 'g'), redis.call('PTTL', K)
if not h[1] or pttl <= (tonumber(h[2] or '0') or 0) then return 0 end
redis.call('HSET', K, 'g', ARGV[2])
redis.call('PEXPIRE', K, ARGV[1] + ARGV[2])
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 1
