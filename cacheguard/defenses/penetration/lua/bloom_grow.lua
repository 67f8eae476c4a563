-- Puts an empty layer on top of a Bloom filter whose last layer is full.
-- KEYS   1 meta
-- ARGV   1 epoch, 2 layers before, 3 layers after, 4 room of the new layer, 5 chunks of all layers
-- Reply  1 if the layers are now those asked for, 0 if the filter is another one by now
local m = redis.call('HMGET', KEYS[1], 'epoch', 'layers')
if m[1] ~= ARGV[1] then return 0 end
if m[2] == ARGV[3] then return 1 end
if m[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'layers', ARGV[3], 'room', ARGV[4], 'total', ARGV[5], 'filled', 0)
return 1
