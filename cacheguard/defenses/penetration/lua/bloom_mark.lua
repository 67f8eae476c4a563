-- Declares a Bloom filter complete: every row that exists was added.
-- KEYS   1 meta
-- ARGV   1 epoch and 2 server that the caller's adds went to; empty if it made none. For a signed filter: those that
--        its seal was made for, and 3 the seal
-- Reply  OK; NONE: no such filter; DAMAGED: bits were lost; CHANGED: another filter or server since those adds;
--        BLIND: this user may not run INFO, so nobody could notice a restart
-- needs: prelude
local meta = KEYS[1]

local m, run = redis.call('HMGET', meta, 'epoch', 'complete', 'damaged', 'run', 'span', 'lease'), identity()
if run == '' then return 'BLIND' end
if not m[1] then return 'NONE' end
if m[3] == '1' then return 'DAMAGED' end
if m[2] == '1' and m[4] == run and ARGV[3] == '' then return 'OK' end
if ARGV[1] ~= '' and (m[1] ~= ARGV[1] or run ~= ARGV[2]) then return 'CHANGED' end
if m[4] ~= run then
  -- What was granted on the other server may not be written down here.
  local now = server_now()
  redis.call('HSET', meta, 'lease', math.max(tonumber(m[6]), now + 1 + m[5]), 'since', now)
end
redis.call('HSET', meta, 'complete', 1, 'run', run, 'seal', ARGV[3])
return 'OK'
