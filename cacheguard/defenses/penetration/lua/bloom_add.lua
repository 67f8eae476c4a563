-- Adds items to a Bloom filter. Once the wait it replies with is over, no process answers "absent" for them.
-- KEYS   1 meta, 2 log of added items, 3 items a running rebuild has to take over, 4... the chunks touched
-- ARGV   1 epoch, 2 header of its chunks, 3 its layers, 4 probe of the caller's hash functions,
--        5 hash functions of each layer ("10,13"), 6 ms a mirror may go without asking (for a filter that is new here),
--        7 "1" if a missing filter is to be created under that epoch, 8 its room, 9 its chunks, 10 length of the log,
--        then for each item: its text, and its places: for each layer a pair (number of its key, bit) per hash
--        function, as 16-bit big-endian numbers
-- Reply  { status, items done, ms to wait, server, epoch, layers, probe }; status is
--        OK; FULL: the last layer is, grow it and send the rest; STALE: other epoch or layers; NONE: no such filter
-- needs: prelude
local meta, log, side = KEYS[1], KEYS[2], KEYS[3]
local epoch, header, layers, probe = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local FIRST = 11

local now, run = server_now(), identity()
if redis.call('HEXISTS', meta, 'epoch') == 0 then
  if ARGV[7] ~= '1' then return { 'NONE', 0, 0, run, '', '', '' } end
  -- Mirrors of a filter that was lost here may still be trusted, so the wait starts anew.
  redis.call('HSET', meta, 'epoch', epoch, 'layers', layers, 'probe', probe, 'complete', 0, 'damaged', 0, 'run', run,
    'count', 0, 'filled', 0, 'room', ARGV[8], 'chunks', 0, 'total', ARGV[9], 'seq', 0,
    'span', ARGV[6], 'lease', now + 1 + ARGV[6], 'since', now)
end

local m = redis.call('HMGET', meta, 'epoch', 'layers', 'probe', 'run', 'damaged', 'count', 'filled', 'room', 'chunks',
  'total', 'span', 'lease', 'next', 'next_until')
local span, lease = tonumber(m[11]), tonumber(m[12])
if m[4] ~= run or run == '' then
  lease = math.max(lease, now + 1 + span)
  redis.call('HSET', meta, 'complete', 0, 'run', run, 'lease', lease, 'since', now)
end
if m[1] ~= epoch or m[2] ~= layers then return { 'STALE', 0, 0, run, m[1], m[2], m[3] } end

local damaged = m[5] == '1' or m[3] ~= probe
local filled, room, chunks, total = tonumber(m[7]), tonumber(m[8]), tonumber(m[9]), tonumber(m[10])
local slices, pairs_of_item = {}, 0
for number in ARGV[5]:gmatch('%d+') do
  slices[#slices + 1] = tonumber(number)
  pairs_of_item = pairs_of_item + tonumber(number)
end
local format = '>' .. string.rep('HH', pairs_of_item)
local last = 2 * (pairs_of_item - (slices[#slices] or 0)) + 1

-- A chunk of the last layer that is not there is new, or was lost: the number of chunks ever made tells a loader, and
-- when all had been made it tells here.
local opened, new_chunks = {}, 0
local function open(key)
  if opened[key] then return end
  opened[key] = true
  local head = redis.call('GETRANGE', key, 0, 7)
  if head == '' and chunks + new_chunks < total then
    redis.call('SET', key, header .. string.rep('\0', 4080))
    new_chunks = new_chunks + 1
  elseif head ~= header then
    damaged = true
  end
end

local function held(places, from, count)
  for i = from, from + 2 * (count - 1), 2 do
    if redis.call('GETBIT', KEYS[places[i]], places[i + 1]) == 0 then return false end
  end
  return true
end

local function held_before(places)
  local from = 1
  for layer = 1, #slices - 1 do
    if held(places, from, slices[layer]) then return true end
    from = from + 2 * slices[layer]
  end
  return false
end

local function set(places)
  local old = 1
  for i = last, #places - 2, 2 do
    if redis.call('SETBIT', KEYS[places[i]], places[i + 1], 1) == 0 then old = 0 end
  end
  return old == 0
end

local added = 0

-- False if there is no room.
local function store(packed)
  if damaged then return true end
  local places = { struct.unpack(format, packed) }
  if held_before(places) then return true end
  for i = last, #places - 2, 2 do open(KEYS[places[i]]) end
  if damaged then return true end
  if filled + added >= room then return held(places, last, slices[#slices]) end
  if set(places) then added = added + 1 end
  return true
end

local texts, status = {}, 'OK'
for i = FIRST, #ARGV, 2 do
  if not store(ARGV[i + 1]) then
    status = 'FULL'
    break
  end
  texts[#texts + 1] = ARGV[i]
end

if damaged then redis.call('HSET', meta, 'damaged', 1, 'complete', 0) end
if new_chunks > 0 then redis.call('HINCRBY', meta, 'chunks', new_chunks) end
if added > 0 then
  redis.call('HINCRBY', meta, 'count', added)
  redis.call('HINCRBY', meta, 'filled', added)
end
if #texts > 0 then
  redis.call('RPUSH', log, unpack(texts))
  redis.call('LTRIM', log, -ARGV[10], -1)
  redis.call('HINCRBY', meta, 'seq', #texts)
  if m[13] and tonumber(m[14]) > now then
    redis.call('RPUSH', side, unpack(texts))
    redis.call('HINCRBY', meta, 'side', #texts)
    redis.call('PEXPIREAT', side, m[14])
  elseif m[13] then
    -- Dead for good, whatever the clock says later: these items are not kept for it.
    redis.call('HDEL', meta, 'next', 'next_until', 'next_run', 'next_seen', 'side')
    redis.call('UNLINK', side)
  end
end
return { status, #texts, math.max(0, math.min(lease - now, span + 1)), run, m[1], m[2], m[3] }
