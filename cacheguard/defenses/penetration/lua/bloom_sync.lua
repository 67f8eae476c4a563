-- Tells a mirror what it does not know yet and, if it then knows everything, lets it answer "absent" for a while.
-- KEYS   1 meta, 2 log of added items
-- ARGV   1 epoch the mirror has, 2 number of items added up to which it knows them, 3 ms it wants to go without asking,
--        4 most items to hand out
-- Reply  { state, server, epoch, seq, layers, probe, count, chunks made, items, seal }; state is complete, incomplete,
--        damaged or none; items are those the mirror lacks, or nil if it has to load the filter anew; the seal says who
--        declared a signed filter complete, and is empty otherwise
-- needs: prelude
local meta, log = KEYS[1], KEYS[2]
local known, wanted = tonumber(ARGV[2]), tonumber(ARGV[3])

local run = identity()
local m = redis.call('HMGET', meta, 'epoch', 'seq', 'layers', 'probe', 'count', 'chunks', 'complete', 'damaged', 'run',
  'span', 'lease', 'seal')
if not m[1] then return { 'none', run } end

local state = m[8] == '1' and 'damaged' or m[7] == '1' and 'complete' or 'incomplete'
local span, lease, now = tonumber(m[10]), tonumber(m[11]), server_now()
if run == '' or m[9] ~= run then
  if state == 'complete' then state = 'incomplete' end
  -- What was granted on the other server may not be written down here.
  if run ~= '' then
    redis.call('HSET', meta, 'complete', 0, 'run', run, 'lease', math.max(lease, now + 1 + span), 'since', now)
  end
end

local items = false
local lacking = tonumber(m[2]) - known
if m[1] == ARGV[1] and lacking >= 0 and lacking <= tonumber(ARGV[4]) and lacking <= redis.call('LLEN', log) then
  items = lacking > 0 and redis.call('LRANGE', log, -lacking, -1) or {}
end
if items and state == 'complete' and wanted > 0 then
  redis.call('HSET', meta, 'lease', math.max(lease, now + 1 + wanted), 'span', math.max(span, wanted))
end
return { state, run, m[1], tonumber(m[2]), m[3], m[4], tonumber(m[5]), tonumber(m[6]), items, m[12] or '' }
