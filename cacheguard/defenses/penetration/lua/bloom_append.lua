-- Adds items to a signed Bloom filter: to its log, whose entries are signed one after the other. Nobody but who knows the
-- secret can write an entry, so the caller says after which one its own come. Once the wait it replies with is over, no
-- process answers "absent" for them.
-- KEYS   1 meta, 2 log of added items, 3 items a running rebuild has to take over
-- ARGV   1 epoch, 2 its layers, 3 number of entries before, 4 signature of the last of them, 5 probe of the caller's hash
--        functions, 6 ms a mirror may go without asking (for a filter that is new here), 7 "1" if a missing filter is to
--        be created under that epoch, 8 "1" if nobody is to trust this filter, 9 length of the log of such a filter,
--        then the entries
-- Reply  { status, ms to wait, server, epoch, layers, entries, the last one, probe }; status is
--        OK; STALE: other epoch, layers or entries; NONE: no such filter
-- needs: prelude
local meta, log, side = KEYS[1], KEYS[2], KEYS[3]
local FIRST = 10

local now, run = server_now(), identity()
if redis.call('HEXISTS', meta, 'epoch') == 0 then
  if ARGV[7] ~= '1' then return { 'NONE', 0, run, '', '', 0, '', '' } end
  -- Mirrors of a filter that was lost here may still be trusted, so the wait starts anew.
  redis.call('UNLINK', log)
  redis.call('HSET', meta, 'epoch', ARGV[1], 'layers', ARGV[2], 'probe', ARGV[5], 'complete', 0, 'damaged', 0, 'run', run,
    'count', 0, 'filled', 0, 'room', 0, 'chunks', 0, 'total', 0, 'seq', 0,
    'span', ARGV[6], 'lease', now + 1 + ARGV[6], 'since', now)
end

local m = redis.call('HMGET', meta, 'epoch', 'layers', 'probe', 'run', 'damaged', 'seq', 'span', 'lease', 'next',
  'next_until')
local seq, span, lease = tonumber(m[6]), tonumber(m[7]), tonumber(m[8])
if m[4] ~= run or run == '' then
  lease = math.max(lease, now + 1 + span)
  redis.call('HSET', meta, 'complete', 0, 'run', run, 'lease', lease, 'since', now)
end
local wait = math.max(0, math.min(lease - now, span + 1))
local last = redis.call('LINDEX', log, -1) or ''
if m[1] ~= ARGV[1] or m[2] ~= ARGV[2] or seq ~= tonumber(ARGV[3]) or last:sub(1, 16) ~= ARGV[4] then
  return { 'STALE', wait, run, m[1], m[2], seq, last, m[3] }
end

-- Entries are never taken away, so a shorter log has lost some.
local damaged = m[5] == '1' or ARGV[8] == '1' or m[3] ~= ARGV[5] or redis.call('LLEN', log) ~= seq
local entries = {}
for i = FIRST, #ARGV do entries[#entries + 1] = ARGV[i] end
redis.call('RPUSH', log, unpack(entries))
redis.call('HINCRBY', meta, 'seq', #entries)
if damaged then
  redis.call('HSET', meta, 'damaged', 1, 'complete', 0)
  redis.call('LTRIM', log, -ARGV[9], -1)
end
if m[9] and tonumber(m[10]) > now then
  redis.call('RPUSH', side, unpack(entries))
  redis.call('HINCRBY', meta, 'side', #entries)
  redis.call('PEXPIREAT', side, m[10])
elseif m[9] then
  -- Dead for good, whatever the clock says later: these items are not kept for it.
  redis.call('HDEL', meta, 'next', 'next_until', 'next_run', 'next_seen', 'side')
  redis.call('UNLINK', side)
end
return { 'OK', wait, run, m[1], m[2], seq + #entries, entries[#entries], m[3] }
