-- Begins a rebuild: from here on every added item is kept for the filter under construction as well.
-- KEYS   1 meta, 2 log of added items, 3 items the rebuild has to take over
-- ARGV   1 epoch of the new filter, 2 ms until the rebuild counts as dead unless it is heard of, 3 ms after which a row
--        whose item was added is committed, 4 length of the log,
--        and for a filter that is not there yet: 5 its epoch, 6 layers, 7 probe, 8 room, 9 chunks, 10 ms a mirror may
--        go without asking; 11 ms of silence after which another rebuild may be taken over, or 0: take over any;
--        12 the epoch that the filter must have (empty: none), or "-" for any
-- Reply  { OK, ms, server, epoch, layers, seq, kept, epoch, layers, epoch, layers ... }: ms to wait before the rows are
--        read, the filter as it is, how many items are kept already, and the filters whose chunks may be left over; { BLIND } if this user may not run INFO;
--        { BUSY } if another rebuild is at work, { CHANGED } if the filter has another epoch
-- needs: prelude
local meta, log, side = KEYS[1], KEYS[2], KEYS[3]

local now, run = server_now(), identity()
if run == '' then return { 'BLIND' } end
local other = redis.call('HMGET', meta, 'next', 'next_until', 'next_seen', 'next_run')
if ARGV[11] ~= '0' and other[1] and other[1] ~= ARGV[1] and other[4] == run and tonumber(other[2]) > now
  and math.abs(now - tonumber(other[3] or now)) < tonumber(ARGV[11]) then
  return { 'BUSY' }
end
if ARGV[12] ~= '-' and other[1] ~= ARGV[1] and (redis.call('HGET', meta, 'epoch') or '') ~= ARGV[12] then
  return { 'CHANGED' }
end
if redis.call('HEXISTS', meta, 'epoch') == 0 then
  redis.call('HSET', meta, 'epoch', ARGV[5], 'layers', ARGV[6], 'probe', ARGV[7], 'complete', 0, 'damaged', 0,
    'run', run, 'count', 0, 'filled', 0, 'room', ARGV[8], 'chunks', 0, 'total', ARGV[9], 'seq', 0,
    'span', ARGV[10], 'lease', now + 1 + ARGV[10], 'since', now)
end

-- The latest items of the past come along: their rows may not be committed yet, so the rebuild may not see them.
redis.call('UNLINK', side)
redis.call('COPY', log, side)
local taken = redis.call('LLEN', side)
redis.call('HSET', meta, 'next', ARGV[1], 'next_until', now + ARGV[2], 'next_run', run, 'next_seen', now, 'side', taken)
redis.call('PEXPIRE', side, ARGV[2])

-- Items added before the filter, its log or its server changed did not come along: their rows have to be committed.
local m = redis.call('HMGET', meta, 'seq', 'since', 'run', 'span', 'epoch', 'layers')
local since, settle = tonumber(m[2]), math.max(tonumber(ARGV[3]), tonumber(m[4]))
if m[3] ~= run or taken < math.min(tonumber(m[1]), tonumber(ARGV[4])) then since = now end
local wait = math.max(0, math.min(since + settle - now, settle))

local reply, fields = { 'OK', wait, run, m[5], m[6], tonumber(m[1]), taken }, redis.call('HGETALL', meta)
for i = 1, #fields, 2 do
  local old = fields[i]:match('^old:(.+)$')
  if old then
    reply[#reply + 1] = old
    reply[#reply + 1] = fields[i + 1]
  end
end
return reply
