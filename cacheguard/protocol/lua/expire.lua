-- EXPIRE: the entry is stale from now on, and a load that began earlier may not make it fresh.
-- KEYS[1] the entry
-- ARGV    channel, message
-- Reply   1 there was a value | 0 there was none
local K = KEYS[1]
redis.call('HDEL', K, 't', 'u', 'x')
redis.call('PUBLISH', ARGV[1], ARGV[2])
local h, pttl = redis.call('HMGET', K, 'v', 'g'), redis.call('PTTL', K)
if not h[1] then return 0 end
if pttl > (tonumber(h[2] or '0') or 0) then redis.call('HSET', K, 'g', pttl) end -- fresh means PTTL > g
return 1
