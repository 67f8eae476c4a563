-- RELEASE: give a lease back without filling; a failed load leaves a word for those who waited for it.
-- KEYS[1] the entry
-- ARGV    token, what the load died of ('' if it did not), ms that the word is kept
-- Reply   1 the lease was still held | 0 it was gone
local K = KEYS[1]
if redis.call('HGET', K, 't') ~= ARGV[1] then return 0 end
redis.call('HDEL', K, 't', 'u')
if ARGV[2] ~= '' then
  redis.call('HSET', K, 'x', ARGV[1] .. ' ' .. ARGV[2])
  if redis.call('HLEN', K) == 1 then redis.call('PEXPIRE', K, ARGV[3]) end
end
return 1
