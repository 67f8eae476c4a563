-- FILL: store what was loaded, if the lease it was loaded under still stands.
-- KEYS[1] the entry
-- ARGV    token, envelope, fresh ms, stale ms, version ('' or fixed-width text)
-- Reply   1 stored | 2 stored until the end of a quarantine only | 0 refused: the lease is gone
--         | -1 refused: older than the version floor
local T = redis.call('TIME')
local now = T[1] * 1000 + math.floor(T[2] / 1000)
local K = KEYS[1]
local h = redis.call('HMGET', K, 't', 'q', 'f')
if h[1] ~= ARGV[1] then return 0 end
local version, fresh, stale = ARGV[5], tonumber(ARGV[3]), tonumber(ARGV[4])
if version ~= '' and h[3] and version < h[3] then
  redis.call('HDEL', K, 't', 'u')
  return -1
end
local proven, reply = version ~= '' and h[3], 1
if h[2] and not proven then
  local left = (tonumber(h[2]) or 0) - now
  if left > 0 then
    fresh = math.min(fresh, left)
    stale = 0
    reply = 2
  end
end
redis.call('HSET', K, 'v', ARGV[2], 'g', stale) -- the first write: a full server refuses the fill here
redis.call('HDEL', K, 't', 'u', 'n')
if version ~= '' then redis.call('HSET', K, 'f', version, 'n', 1) end
redis.call('PEXPIRE', K, fresh + stale)
return reply
