-- TOUCH: give a fresh entry a new TTL.
-- KEYS[1] the entry
-- ARGV    fresh ms, stale ms, channel, message, and maybe:
--         SHA-1 of the value that was read, the same value with its new TTL (its age follows from that)
-- Reply   1 done | 0 there is no fresh entry
local K = KEYS[1]
local h, pttl = redis.call('HMGET', K, 'v', 'g'), redis.call('PTTL', K)
if not h[1] or pttl <= (tonumber(h[2] or '0') or 0) then return 0 end
redis.call('HSET', K, 'g', ARGV[2])
if ARGV[5] and redis.sha1hex(h[1]) == ARGV[5] then redis.call('HSET', K, 'v', ARGV[6]) end
redis.call('PEXPIRE', K, ARGV[1] + ARGV[2])
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 1
