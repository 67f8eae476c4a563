-- Put in front of the scripts of this folder that say so.

-- Ms since 1970.
local function server_now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The process and its replication history: another one may have lost what this one had acknowledged.
local function identity()
  local server, replication = redis.pcall('INFO', 'server'), redis.pcall('INFO', 'replication')
  if type(server) ~= 'string' or type(replication) ~= 'string' then return '' end
  local run = server:match('run_id:(%w+)')
  return run and run .. (replication:match('master_replid:(%w+)') or '') or ''
end

