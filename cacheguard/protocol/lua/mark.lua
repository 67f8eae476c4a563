-- MARK: the nonce of a namespace or a tag, made if there is none.
-- KEYS[1] the marker
-- ARGV    nonce to use if there is none, ms that it must be kept at least
-- Reply   {nonce, server ms since which it is this one, ms that a quarantine goes on}
-- needs: prelude
local now = server_now()
local K = KEYS[1]
local h = redis.call('HMGET', K, 'v', 'c', 'q')
local keep, quarantine = tonumber(ARGV[2]), (tonumber(h[3] or '0') or 0) - now
local nonce, since = h[1], tonumber(h[2] or '0') or 0
if not nonce then
  nonce, since = ARGV[1], now
  redis.call('HSET', K, 'v', nonce, 'c', now)
end
if quarantine > 0 then
  redis.call('PEXPIRE', K, quarantine) -- what is cached under it during the quarantine dies with it
elseif redis.call('PTTL', K) < keep then
  redis.call('PEXPIRE', K, 2 * keep) -- twice, so that it is not written at every miss
end
return {nonce, since, math.max(0, quarantine)}
