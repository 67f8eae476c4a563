-- Begins a rebuild: from here on every added item is kept for the filter under construction as well.
-- KEYS   1 meta, 2 log of added items, 3 items the rebuild has to take over
-- ARGV   1 epoch of the new filter, 2 ms until the rebuild counts as dead unless it is heard of, 3 ms after which a row
--        whose item was added is committed, 4 length of the log,
--        and for a filter that is not there yet: 5 its epoch, 6 layers, 7 probe, 8 room, 9 chunks, 10 ms a mirror may
--        go without asking
-- Reply  { OK, ms, epoch, layers, epoch, layers ... }: ms to wait before the rows are read, and the filters whose
--        chunks may be left over; or { BLIND } if this user may not run INFO
-- needs: prelude
local meta, log, side = KEYS[1], KEYS[2], KEYS[3]

local now, run = server_now(), identity()
if run == '' then return { 'BLIND' } end
if redis.call('HEXISTS', meta, 'epoch') == 0 then
  redis.call('HSET', meta, 'epoch', ARGV[5], 'layers', ARGV[6], 'probe', ARGV[7], 'complete', 0, 'damaged', 0,
    'run', run, 'count', 0, 'filled', 0, 'room', ARGV[8], 'chunks', 0, 'total', ARGV[9], 'seq', 0,
    'span', ARGV[10], 'lease', now + 1 + ARGV[10], 'since', now)
end

-- The latest items of the past come along: their rows may not be committed yet, so the rebuild may not see them.
redis.call('UNLINK', side)
redis.call('COPY', log, side)
local taken = redis.call('LLEN', side)
redis.call('HSET', meta, 'next', ARGV[1], 'next_until', now + ARGV[2], 'next_run', run, 'side', taken)
redis.call('PEXPIRE', side, ARGV[2])

-- Items added before the filter, its log or its server changed did not come along: their rows have to be committed.
local m = redis.call('HMGET', meta, 'seq', 'since', 'run', 'span')
local since, settle = tonumber(m[2]), math.max(tonumber(ARGV[3]), tonumber(m[4]))
if m[3] ~= run or taken < math.min(tonumber(m[1]), tonumber(ARGV[4])) then since = now end
local wait = math.max(0, math.min(since + settle - now, settle))

local reply, fields = { 'OK', wait }, redis.call('HGETALL', meta)
for i = 1, #fields, 2 do
  local old = fields[i]:match('^old:(.+)$')
  if old then
    reply[#reply + 1] = old
    reply[#reply + 1] = fields[i + 1]
  end
end
return reply
