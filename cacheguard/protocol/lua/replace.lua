-- REPLACE: put a new value in the place of the one that was read. Its lifetime stays; a load under way may not fill.
-- KEYS[1] the entry
-- ARGV    token of this call, SHA-1 of the value that was read, envelope, channel, message
-- Reply   {1} done | {0} there is no fresh value | {2, v, g, pttl} there is another one
local K = KEYS[1]
local h, pttl = redis.call('HMGET', K, 'v', 'g', 'r'), redis.call('PTTL', K)
local past = h[3] or '' -- the tokens of those that changed the value last: a repeated call must not count twice
if string.find(past, ARGV[1], 1, true) then return {1} end
local g = tonumber(h[2] or '0') or 0
if not h[1] or pttl <= g then return {0} end
if redis.sha1hex(h[1]) ~= ARGV[2] then return {2, h[1], g, pttl} end
redis.call('HSET', K, 'v', ARGV[3], 'r', ARGV[1] .. string.sub(past, 1, 7 * #ARGV[1]))
redis.call('HDEL', K, 't', 'u', 'x', 'n')
redis.call('PUBLISH', ARGV[4], ARGV[5])
return {1}
