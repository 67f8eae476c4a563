-- Hands a rebuild the items that were added meanwhile; with none left, puts its filter in the place of the old one.
-- KEYS   1 meta, 2 log of added items, 3 items the rebuild has to take over, and for a signed filter 4 its own log
-- ARGV   1 epoch of the new filter, 2 ms until the rebuild counts as dead unless it is heard of, 3 items taken over so
--        far, 4 most items to hand out, and to switch as well: 5 layers, 6 probe, 7 count, 8 filled in the last layer,
--        9 its room, 10 chunks, 11 "1" if it is complete, and for a signed one 12 length of its log, 13 its seal
-- Reply  { BEHIND, items }; { SWITCHED, seq, old epoch, old layers } (also when it had switched before);
--        { OVERTAKEN }: another rebuild began later, or this one was silent for too long;
--        { LOST }: the filter, the kept items or the server is not what it was at the beginning
-- needs: prelude
local meta, log, side = KEYS[1], KEYS[2], KEYS[3]
local taken = tonumber(ARGV[3])

local now, run = server_now(), identity()
local m = redis.call('HMGET', meta, 'epoch', 'layers', 'next', 'next_until', 'next_run', 'side', 'seq', 'run', 'span',
  'lease', 'previous')
if not m[1] then return { 'LOST' } end
if m[1] == ARGV[1] then return { 'SWITCHED', tonumber(m[7]), m[11], redis.call('HGET', meta, 'old:' .. m[11]) or '' } end
if m[3] ~= ARGV[1] or tonumber(m[4]) <= now then return { 'OVERTAKEN' } end
if m[5] ~= run or tonumber(m[6]) ~= redis.call('LLEN', side) then return { 'LOST' } end

redis.call('HSET', meta, 'next_until', now + ARGV[2], 'next_seen', now)
redis.call('PEXPIRE', side, ARGV[2])
if tonumber(m[6]) > taken then
  return { 'BEHIND', redis.call('LRANGE', side, taken, taken + ARGV[4] - 1) }
end
if not ARGV[5] then return { 'BEHIND', {} } end
if ARGV[12] and redis.call('LLEN', KEYS[4]) ~= tonumber(ARGV[12]) then return { 'LOST' } end

-- Mirrors of the old filter go on until their lease is over. That does no harm: what was added up to here is in it,
-- and whoever adds from here on waits for the lease. A lease granted on another server may not be written down here.
local lease = tonumber(m[10])
if m[8] ~= run then
  lease = math.max(lease, now + 1 + m[9])
  redis.call('HSET', meta, 'since', now)
end
redis.call('HSET', meta, 'epoch', ARGV[1], 'layers', ARGV[5], 'probe', ARGV[6], 'complete', ARGV[11], 'damaged', 0, 'run', run,
  'count', ARGV[7], 'filled', ARGV[8], 'room', ARGV[9], 'chunks', ARGV[10], 'total', ARGV[10], 'lease', lease,
  'previous', m[1], 'old:' .. m[1], m[2], 'seal', ARGV[13] or '')
redis.call('HDEL', meta, 'next', 'next_until', 'next_run', 'next_seen', 'side')
redis.call('UNLINK', side)
if ARGV[12] then
  redis.call('UNLINK', log)
  if ARGV[12] ~= '0' then
    redis.call('RENAME', KEYS[4], log)
    redis.call('PERSIST', log)
  end
  redis.call('HSET', meta, 'seq', ARGV[12])
  return { 'SWITCHED', tonumber(ARGV[12]), m[1], m[2] }
end
-- What signed filters log is of no use for one that is not signed.
if m[2]:sub(1, 6) == 'signed' then redis.call('UNLINK', log) end
return { 'SWITCHED', tonumber(m[7]), m[1], m[2] }
