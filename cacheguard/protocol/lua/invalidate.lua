-- INVALIDATE: no value, and no lease under which an older load could bring one back.
-- KEYS[1] the entry, or a marker
-- ARGV    channel, message, quarantine ms, floor ('' or fixed-width text), floor ms, begin id, intent ms, end id,
--         how many bytes of what was there are wanted (may be left out)
-- Reply   1 | 2 the value stays: its own version is no older than the floor (it is news that this value has already)
--         | {first bytes of v or false, g, pttl}, as they were, if bytes are wanted
-- needs: prelude
local now = server_now()
local K = KEYS[1]
local known = false
if ARGV[4] ~= '' and ARGV[6] == '' then
  local h = redis.call('HMGET', K, 'n', 'f') -- n: the value has a version, which then is f
  known = h[1] and h[2] and ARGV[4] <= h[2]
end
local head
if ARGV[9] then
  local h = redis.call('HMGET', K, 'v', 'g')
  head = {h[1] and string.sub(h[1], 1, tonumber(ARGV[9])), tonumber(h[2] or '0') or 0, redis.call('PTTL', K)}
end
-- The first write is one that needs no memory: a full server lets the rest of the script through.
if known then redis.call('HDEL', K, 't', 'u', 'x') else redis.call('HDEL', K, 'v', 'g', 't', 'u', 'x', 'n', 'c') end
redis.call('PUBLISH', ARGV[1], ARGV[2])
if ARGV[8] ~= '' then redis.call('HDEL', K, 'w:' .. ARGV[8]) end
if ARGV[6] ~= '' then redis.call('HSET', K, 'w:' .. ARGV[6], now + tonumber(ARGV[7])) end
local quarantine = tonumber(ARGV[3])
if quarantine > 0 then
  local old = redis.call('HGET', K, 'q')
  if not old or (tonumber(old) or 0) < now + quarantine then redis.call('HSET', K, 'q', now + quarantine) end
end
if ARGV[4] ~= '' then
  local old = redis.call('HGET', K, 'f')
  if not old or old < ARGV[4] then redis.call('HSET', K, 'f', ARGV[4]) end
end
if redis.call('EXISTS', K) == 1 then
  local last = written_until(K, now)
  local h, pttl = redis.call('HMGET', K, 'q', 'f', 'g'), redis.call('PTTL', K)
  if h[1] then last = math.max(last, tonumber(h[1]) or 0) end
  if h[2] then last = math.max(last, now + tonumber(ARGV[5]), now + pttl) end
  last = math.min(last, now + 31536000000)
  if last <= now then
    redis.call('DEL', K)
  else
    -- A value that stays grows no younger with the key.
    if known and last - now > pttl then redis.call('HSET', K, 'g', (tonumber(h[3] or '0') or 0) + last - now - pttl) end
    redis.call('PEXPIRE', K, last - now)
  end
end
return head or known and 2 or 1
