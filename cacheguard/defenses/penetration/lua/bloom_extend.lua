-- Puts entries into the log of a signed Bloom filter that is being built.
-- KEYS   1 the new log
-- ARGV   1 number of entries before, 2 ms to keep it, then the entries
-- Reply  number of entries in it
local log, before = KEYS[1], tonumber(ARGV[1])

-- Whatever is beyond is from the same call, sent before.
if before == 0 then
  redis.call('UNLINK', log)
else
  redis.call('LTRIM', log, 0, before - 1)
end
local entries = {}
for i = 3, #ARGV do entries[#entries + 1] = ARGV[i] end
redis.call('RPUSH', log, unpack(entries))
redis.call('PEXPIRE', log, ARGV[2])
return redis.call('LLEN', log)
