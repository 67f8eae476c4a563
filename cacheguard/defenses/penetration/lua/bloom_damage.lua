-- Notes that chunks of a Bloom filter were lost, so that nobody trusts it before it is rebuilt.
-- KEYS   1 meta
-- ARGV   1 epoch the chunks belong to
-- Reply  1 if noted, 0 if the filter is another one by now
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'damaged', 1, 'complete', 0)
return 1
