-- Ends a rebuild that failed, if no other one has begun since.
-- KEYS   1 meta, 2 items the rebuild had to take over
-- ARGV   1 epoch of the filter that will not be
-- Reply  1 if it ended here, 0 if it had ended before
if redis.call('HGET', KEYS[1], 'next') ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[1], 'next', 'next_until', 'next_run', 'next_seen', 'side')
redis.call('UNLINK', KEYS[2])
return 1
