-- Put in front of the scripts of this folder: what is stored under a key, taken apart and put back together.
--
-- K = header · value · claims. All times are this server's, in ms. A claim is {its end, its longest life, ...}: it is
-- alive until its end, and an end further away than its life was written by another clock and is cut to it.
--   l lease {.., token, 1 if somebody waits for it,     w writes under way {id: {..}}
--     version, under of the quarantine that it was granted in}
--   q quarantine {.., version, under}                   f version floor {.., version, under}
--   x a load that failed {.., token, failures in a row, what it died of, ms that nobody loads}
--   g floors under other names than that of f {under: {.., version}}
--   r calls that may be repeated {token: {..}}          n version of the value {version, under}
--   t of a namespace: some tag beneath it is quarantined
--   b when the value ends at the latest, since it was loaded in a quarantine of its key or of a marker
-- `under` are the nonces of the namespaces when the version was written: under others, it does not count.

local LAYOUT, H, HEADER = 0xC2, 34, '>BBI6I4I6I6I6I4'
local FIRST = H + 256 -- bytes that are read at once: of most leases, markers and small values that is all there is
local FLOOR_MS, FLOORS, REPEATED_MS, REPEATED = 300000, 4, 10000, 8
local LONGEST_MS, LONGEST_LEASE_MS = 63072000000, 300000 -- whatever a claim or a value says of itself
local T = redis.call('TIME')
local now = T[1] * 1000 + math.floor(T[2] / 1000)
local cut = false -- a claim was; unless that is written back, it never ends while the clock lags behind

-- What a claim of each kind says, behind its end and its longest life.
local TOKEN, VERSION, FAILURE = {'string'}, {'string', 'string'}, {'string', 'number', 'string', 'number'}

local function is_whole(number)
  return type(number) == 'number' and number > 0 and number <= 9007199254740992 and number % 1 == 0
end

-- The claim, with an end that its kind may have; nil if it is over, or none that a guard has written.
local function alive(claim, says, longest)
  if type(claim) ~= 'table' then return nil end
  local ends, life = claim[1], claim[2]
  if not is_whole(ends) or not is_whole(life) or ends <= now then return nil end
  for at, kind in ipairs(says or {}) do
    if type(claim[at + 2]) ~= kind then return nil end
  end
  life = math.min(life, longest or LONGEST_MS)
  if ends - now > life then claim[1], cut = now + life, true end
  return claim
end

local function each_alive(claims, says)
  local left = {}
  if type(claims) == 'table' then
    for id, claim in pairs(claims) do left[id] = alive(claim, says) end
  end
  return next(left) and left or nil
end

local function same_names(one, other)
  return one == '' or other == '' or one == other
end

-- Room for one more of these claims: if there are as many as may be, the one that ends first goes.
local function make_room(claims, most)
  local count, first, ends = 0, nil, nil
  for id, claim in pairs(claims) do
    count = count + 1
    if not ends or claim[1] < ends then first, ends = id, claim[1] end
  end
  if count >= most then claims[first] = nil end
end

-- A writer that has not heard of a clear() yet raises a floor under the names before; those under others go on.
local function raise_floor(e, version, under, ms)
  local f, g = e.c.f, e.c.g or {}
  local ends, life = now + ms, ms
  if f and not same_names(f[4], under) then
    make_room(g, FLOORS)
    g[f[4]], f = f, g[under]
    g[under] = nil
    e.c.g = next(g) and g or nil
  end
  if f and same_names(f[4], under) then
    if f[1] > ends then ends, life = f[1], f[2] end
    if f[3] > version then version = f[3] end
    if f[4] == '' then under = '' end
  end
  e.c.f = {ends, life, version, under}
end

-- What is under K. A value that is dead, or fresh for longer than it may be, is not there.
local function open(K)
  local e = {key = K, fresh = 0, span = 0, dead = 0, born = 0, vlen = 0, c = {}}
  local raw = redis.call('GETRANGE', K, 0, FIRST - 1)
  if #raw < H then return e end
  local layout, _, fresh, clen, span, dead, born, vlen = struct.unpack(HEADER, raw)
  if layout ~= LAYOUT then
    e.foreign = layout >= 0xC0 and layout <= 0xCF -- another release wrote it; anything else is garbage
    return e
  end
  local length = H + vlen + clen
  if length <= #raw then
    e.raw = raw
  elseif #raw < FIRST or length > redis.call('STRLEN', K) then
    return e
  end
  if clen > 0 then
    local claims = e.raw and string.sub(raw, H + vlen + 1, length) or redis.call('GETRANGE', K, H + vlen, length - 1)
    local ok, c = pcall(cmsgpack.unpack, claims)
    if ok and type(c) == 'table' then
      e.c = {
        l = alive(c.l, TOKEN, LONGEST_LEASE_MS), q = alive(c.q, VERSION), f = alive(c.f, VERSION),
        x = alive(c.x, FAILURE), t = alive(c.t),
        w = each_alive(c.w), r = each_alive(c.r), g = each_alive(c.g, VERSION),
        n = type(c.n) == 'table' and type(c.n[1]) == 'string' and type(c.n[2]) == 'string' and c.n or nil,
        b = is_whole(c.b) and c.b or nil,
      }
    end
  end
  local l = e.c.l
  if l and l[5] ~= nil and (type(l[5]) ~= 'string' or type(l[6]) ~= 'string') then e.c.l = nil end
  e.stored = vlen
  if vlen > 0 and dead > now and fresh - now <= math.min(span, LONGEST_MS) then
    e.fresh, e.span, e.dead, e.born, e.vlen = fresh, span, dead, born, vlen
  else
    if e.c.n then raise_floor(e, e.c.n[1], e.c.n[2], FLOOR_MS) end -- not there any more, but known
    e.c.n, e.c.b = nil, nil
  end
  return e
end

local function first_of(e, count)
  if e.raw then return string.sub(e.raw, H + 1, H + count) end
  return redis.call('GETRANGE', e.key, H, H + count - 1)
end

local function value_of(e)
  return e.vlen > 0 and first_of(e, e.vlen) or false
end

local function head_of(e, clen)
  local flags = ((e.c.q or e.c.w) and 1 or 0) + (e.vlen > 0 and 2 or 0)
  return struct.pack(HEADER, LAYOUT, flags, e.fresh, clen, e.span, e.dead, e.born, e.vlen)
end

-- Header and value, as READ gets them; false if there is no value.
local function raw_of(e, most)
  local value = e.vlen > 0 and first_of(e, math.min(e.vlen, most or e.vlen))
  return value and head_of(e, 0) .. value
end

local function later(last, claims)
  for _, claim in pairs(claims or {}) do last = math.max(last, claim[1]) end
  return last
end

-- When the last of all that is under the key ends.
local function end_of(e)
  local c = e.c
  local last = e.vlen > 0 and e.dead or 0
  for _, name in ipairs({'l', 'q', 'f', 'x', 't'}) do
    if c[name] then last = math.max(last, c[name][1]) end
  end
  return later(later(later(last, c.w), c.r), c.g)
end

local function tail_of(e)
  return next(e.c) and cmsgpack.pack(e.c) or ''
end

-- Store a new value, with the claims.
local function put(e, value)
  e.vlen, e.raw = #value, nil
  local tail = tail_of(e)
  redis.call('SET', e.key, head_of(e, #tail) .. value .. tail, 'PXAT', end_of(e))
end

-- Write back header and claims; the value stays as it is, or is gone.
local function save(e)
  local last = end_of(e)
  if last <= now then
    redis.call('DEL', e.key)
    return
  end
  local tail = tail_of(e)
  if e.vlen == 0 or e.vlen ~= e.stored then
    e.vlen = 0
    redis.call('SET', e.key, head_of(e, #tail) .. tail, 'PXAT', last)
    return
  end
  if #tail > 0 then redis.call('SETRANGE', e.key, H + e.vlen, tail) end
  redis.call('SETRANGE', e.key, 0, head_of(e, #tail))
  redis.call('PEXPIREAT', e.key, last)
end

-- A write that needs no memory: a full server lets what follows it in a script through.
local function although_full(e)
  redis.call('PERSIST', e.key)
end

local function save_cut(e)
  if cut then save(e) end
end

local function is_fresh(e)
  return e.vlen > 0 and e.fresh > now
end

-- The value under the key, unless this caller cannot use it.
local function is_usable(e, unusable)
  return e.vlen > 0 and not (unusable ~= '' and redis.sha1hex(value_of(e)) == unusable)
end

local function is_below(version, under, floor)
  return floor ~= nil and same_names(floor[4], under) and version < floor[3]
end

-- Whether version is older than a floor, or than that of the value.
local function is_old(e, version, under)
  local n = e.c.n
  if version == '' then return false end
  for _, floor in pairs(e.c.g or {}) do
    if is_below(version, under, floor) then return true end
  end
  return is_below(version, under, e.c.f) or (n ~= nil and same_names(n[2], under) and version < n[1])
end

-- Whether a value with this version is no older than the write for which a quarantine began.
local function proves(version, under, written, under_which)
  return version ~= '' and written ~= '' and same_names(under_which, under) and version >= written
end

-- Until when a value with this version may live: it ends with a quarantine, unless its version proves it.
local function quarantined(e, version, under)
  local q = e.c.q
  if not q or proves(version, under, q[3], q[4]) then return nil end
  return q[1]
end

-- The value goes, or another takes its place: from now on its version is the floor.
local function let_go(e)
  local n = e.c.n
  if n then raise_floor(e, n[1], n[2], FLOOR_MS) end
  e.c.n, e.c.b, e.vlen = nil, nil, 0
end

-- No load that is under way may fill.
local function void(e)
  e.c.l, e.c.x = nil, nil
end

-- The value ends then, whatever its life was to be, and nothing makes that longer.
local function end_by(e, until_ms)
  e.c.b = math.min(e.c.b or until_ms, until_ms)
  e.fresh, e.dead = math.min(e.fresh, e.c.b), math.min(e.dead, e.c.b)
end

-- A new value and its life, which ends with a quarantine if there is one, and with latest unless that is 0; whether it
-- ends so.
local function replace(e, value, fresh, stale, version, under, latest)
  let_go(e)
  local until_ms = quarantined(e, version, under)
  e.fresh, e.span, e.dead, e.born = now + fresh, fresh, now + fresh + stale, now
  if until_ms then end_by(e, until_ms) end
  if latest > 0 then end_by(e, latest) end
  local brief = e.c.b ~= nil
  if brief then e.dead, e.span = e.fresh, e.fresh - now end
  if version ~= '' then e.c.n = {version, under} end
  put(e, value)
  return brief
end

-- The value must outlive a load, to be served if that fails.
local function outlive(e, ms)
  if e.vlen > 0 then e.dead = math.max(e.dead, math.min(now + ms, e.c.b or now + ms)) end
end

local function remember(e, token)
  local kept = e.c.r or {}
  make_room(kept, REPEATED)
  kept[token] = {now + REPEATED_MS, REPEATED_MS}
  e.c.r = kept
end

local function was_done(e, token)
  return e.c.r ~= nil and e.c.r[token] ~= nil
end

-- When the last of the writes under way ends; 0 without one.
local function written_until(e)
  return later(0, e.c.w)
end

-- Tell those who wait for the lease of this load that it is gone.
local function wake(e, channel)
  redis.call('PUBLISH', channel, '2 filled ' .. e.key)
end

-- Tell every process what has changed, and what else it has to know: see messages.py.
local function tell(e, channel, echo)
  local c = e.c
  local quarantine, floor, write = 0, '-', written_until(e)
  if c.q then quarantine = c.q[1] - now end
  if c.f then floor = c.f[3] end
  if write > 0 then write = write - now end
  redis.call('PUBLISH', channel, string.format('2 drop %s %d %d %s %s', echo, quarantine, write, floor, e.key))
end

