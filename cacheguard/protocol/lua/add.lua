-- ADD: put a value there by hand if no usable one is there; a load under way may no longer fill.
-- KEYS[1] the entry
-- ARGV    token of this call, envelope, fresh ms, stale ms,
--         unusable (SHA-1 of a value that this caller cannot use, or ''), channel, message
-- Reply   {1} stored | {0} not stored: a write is under way | {2, v, g, pttl} not stored: there is a fresh value
-- needs: prelude
local now = server_now()
local K = KEYS[1]
local h, pttl = redis.call('HMGET', K, 'v', 'g', 'q', 'r'), redis.call('PTTL', K)
local past = h[4] or '' -- the tokens of those that changed the value last: a repeated call must not count twice
if string.find(past, ARGV[1], 1, true) then return {1} end
local g, fresh, stale = tonumber(h[2] or '0') or 0, tonumber(ARGV[3]), tonumber(ARGV[4])
if h[1] and pttl > g and not (ARGV[5] ~= '' and redis.sha1hex(h[1]) == ARGV[5]) then return {2, h[1], g, pttl} end
redis.call('HDEL', K, 't', 'u', 'x')
local write = written_until(K, now) > 0
redis.call('PUBLISH', ARGV[6], ARGV[7])
if write then return {0} end
fresh, stale = quarantined(h[3], now, fresh, stale)
redis.call('HSET', K, 'v', ARGV[2], 'g', stale, 'r', ARGV[1] .. string.sub(past, 1, 7 * #ARGV[1]))
redis.call('HDEL', K, 'n')
redis.call('PEXPIRE', K, fresh + stale)
return {1}
