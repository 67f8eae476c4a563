-- HEAD: the beginning of an entry, enough to say whether it stands, without its value travelling along.
-- KEYS[1] the entry
-- ARGV    how many bytes of it
-- Reply   {first bytes of v or false, g, pttl}
local K = KEYS[1]
local h = redis.call('HMGET', K, 'v', 'g')
return {h[1] and string.sub(h[1], 1, tonumber(ARGV[1])), tonumber(h[2] or '0') or 0, redis.call('PTTL', K)}
