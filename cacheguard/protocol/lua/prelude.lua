-- Put in front of the scripts of this folder that say so.

-- This server's time in ms.
local function server_now()
  local T = redis.call('TIME')
  return T[1] * 1000 + math.floor(T[2] / 1000)
end

-- When the last of the writes under way ends, 0 without one. Those that should have ended by now are dropped.
local function written_until(K, now)
  local last = 0
  for _, f in ipairs(redis.call('HKEYS', K)) do
    if string.sub(f, 1, 2) == 'w:' then
      local deadline = tonumber(redis.call('HGET', K, f)) or 0
      if deadline > now then last = math.max(last, deadline) else redis.call('HDEL', K, f) end
    end
  end
  return last
end

-- How long a value is fresh and stale that is stored now; during quarantine q it dies with it. And whether that is so.
local function quarantined(q, now, fresh, stale)
  local left = (tonumber(q or '0') or 0) - now
  if left <= 0 then return fresh, stale, false end
  return math.min(fresh, left), 0, true
end

