-- FILL: store what was loaded, if the lease it was loaded under still stands.
-- KEYS[1] the entry
-- ARGV    token, envelope, fresh ms, stale ms, version ('' or fixed-width text)
-- Reply   1 stored | 2 stored until the end of a quarantine only | 0 refused: the lease is gone
--         | -1 refused: older than the version floor
-- needs: prelude
local now = server_now()
local K = KEYS[1]
local h = redis.call('HMGET', K, 't', 'q', 'f')
if h[1] ~= ARGV[1] then return 0 end
local version, fresh, stale = ARGV[5], tonumber(ARGV[3]), tonumber(ARGV[4])
if version ~= '' and h[3] and version < h[3] then
  redis.call('HDEL', K, 't', 'u')
  return -1
end
local cut = false
if version == '' or not h[3] then fresh, stale, cut = quarantined(h[2], now, fresh, stale) end
redis.call('HSET', K, 'v', ARGV[2], 'g', stale) -- the first write: a full server refuses the fill here
redis.call('HDEL', K, 't', 'u', 'n')
if version ~= '' then redis.call('HSET', K, 'f', version, 'n', 1) end
redis.call('PEXPIRE', K, fresh + stale)
return cut and 2 or 1
