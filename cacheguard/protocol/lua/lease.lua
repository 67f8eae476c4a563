-- LEASE: the fresh value, or the right to load it.
-- KEYS[1] the entry
-- ARGV    token, lease ms, grace ms, floor ms (a value that stays fresh no longer than this does not count),
--         awaited (the token of a lease that this caller waited for, or ''),
--         unusable (SHA-1 of a value that this caller cannot use, or '')
-- Reply   {'HIT', v, g, pttl} | {'GRANTED', server ms, v or false, g, pttl}
--         | {'WAIT', ms left, holder's token, v or false, g, pttl}
--         | {'BYPASS', ms left} (a write is under way) | {'FAILED', what the awaited load died of}
-- needs: prelude
local now = server_now()
local K = KEYS[1]
local h = redis.call('HMGET', K, 'v', 'g', 't', 'u', 'x')
local v, g, pttl = h[1], tonumber(h[2] or '0') or 0, redis.call('PTTL', K)
local usable = v
if v and ARGV[6] ~= '' and redis.sha1hex(v) == ARGV[6] then usable = false end
if usable and pttl - g > tonumber(ARGV[4]) then return {'HIT', v, g, pttl} end
if h[3] == ARGV[1] then return {'GRANTED', now, usable, g, pttl} end
local write = written_until(K, now)
pttl = redis.call('PTTL', K) -- dropping the last field drops the key
if write > 0 then return {'BYPASS', write - now} end
local held = tonumber(h[4] or '0') or 0
if h[3] and held > now then return {'WAIT', held - now, h[3], usable, g, pttl} end
if h[5] then
  local token, what = string.match(h[5], '^(%S+) (.*)$')
  if ARGV[5] ~= '' and token == ARGV[5] then return {'FAILED', what} end
end
redis.call('HSET', K, 't', ARGV[1], 'u', now + tonumber(ARGV[2]))
redis.call('HDEL', K, 'x')
-- A lease must outlive the entry it renews: g moves along with the TTL, so the value grows no younger.
local want = tonumber(ARGV[2]) + tonumber(ARGV[3])
if pttl < want then
  if v then
    g = g + want - pttl
    redis.call('HSET', K, 'g', g)
  end
  redis.call('PEXPIRE', K, want)
  pttl = want
end
return {'GRANTED', now, usable, g, pttl}
