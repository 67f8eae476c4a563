-- A sign of life of a rebuild whose rows are still being read.
-- KEYS   1 meta
-- ARGV   1 epoch of the new filter, 2 ms until the rebuild counts as dead unless it is heard of
-- Reply  1, or 0 if it counts as dead already
-- needs: prelude
local now, m = server_now(), redis.call('HMGET', KEYS[1], 'next', 'next_until')
if m[1] ~= ARGV[1] or tonumber(m[2]) <= now then return 0 end
redis.call('HSET', KEYS[1], 'next_until', now + ARGV[2], 'next_seen', now)
return 1
