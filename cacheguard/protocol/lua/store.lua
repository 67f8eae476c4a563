-- STORE: put a value there by hand; the last writer wins, and a load under way may no longer fill.
-- KEYS[1] the entry
-- ARGV    envelope, fresh ms, stale ms, version ('' or fixed-width text), channel, message
-- Reply   1 stored | 0 not stored: a write is under way | -1 not stored: older than the version floor
local T = redis.call('TIME')
local now = T[1] * 1000 + math.floor(T[2] / 1000)
local K = KEYS[1]
local h = redis.call('HMGET', K, 'q', 'f')
local version, fresh, stale = ARGV[4], tonumber(ARGV[2]), tonumber(ARGV[3])
if version ~= '' and h[2] and version < h[2] then return -1 end
redis.call('HDEL', K, 't', 'u', 'x')
local write = false
for _, f in ipairs(redis.call('HKEYS', K)) do
  if string.sub(f, 1, 2) == 'w:' then
    if (tonumber(redis.call('HGET', K, f)) or 0) > now then write = true else redis.call('HDEL', K, f) end
  end
end
redis.call('PUBLISH', ARGV[5], ARGV[6])
if write then return 0 end
if h[1] and not (version ~= '' and h[2]) then
  local left = (tonumber(h[1]) or 0) - now
  if left > 0 then
    fresh = math.min(fresh, left)
    stale = 0
  end
end
redis.call('HSET', K, 'v', ARGV[1], 'g', stale)
redis.call('HDEL', K, 'n')
if version ~= '' then redis.call('HSET', K, 'f', version, 'n', 1) end
redis.call('PEXPIRE', K, fresh + stale)
return 1
