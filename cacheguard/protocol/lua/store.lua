-- STORE: put a value there by hand; the last writer wins, and a load under way may no longer fill.
-- KEYS[1] the entry
-- ARGV    envelope, fresh ms, stale ms, version ('' or fixed-width text), channel, message
-- Reply   1 stored | 0 not stored: a write is under way | -1 not stored: older than the version floor
-- needs: prelude
local now = server_now()
local K = KEYS[1]
local h = redis.call('HMGET', K, 'q', 'f')
local version, fresh, stale = ARGV[4], tonumber(ARGV[2]), tonumber(ARGV[3])
if version ~= '' and h[2] and version < h[2] then return -1 end
redis.call('HDEL', K, 't', 'u', 'x')
local write = written_until(K, now) > 0
redis.call('PUBLISH', ARGV[5], ARGV[6])
if write then return 0 end
if version == '' or not h[2] then fresh, stale = quarantined(h[1], now, fresh, stale) end
redis.call('HSET', K, 'v', ARGV[1], 'g', stale)
redis.call('HDEL', K, 'n')
if version ~= '' then redis.call('HSET', K, 'f', version, 'n', 1) end
redis.call('PEXPIRE', K, fresh + stale)
return 1
