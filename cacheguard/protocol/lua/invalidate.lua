-- INVALIDATE: no value, and no lease under which an older load could bring one back.
-- KEYS[1] the entry, or a marker
-- ARGV    channel, echo, quarantine ms, floor ('' or fixed-width text), under, floor ms, begin id, intent ms, end id,
--         how many bytes of what was there are wanted ('' or a number)
-- Reply   1 | 2 the value stays: its own version is no older than the floor (it is news that this value has already)
--         | {header and first bytes of the value or false, now} as they were, if bytes are wanted
-- needs: prelude
local e = open(KEYS[1])
local c = e.c
local quarantine, floor, under, begins, ends = tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[7], ARGV[9]
local head = ARGV[10] ~= '' and {raw_of(e, tonumber(ARGV[10])), now}
local known = floor ~= '' and begins == '' and c.n ~= nil and same_names(c.n[2], under) and floor <= c.n[1]
if known then
  although_full(e)
else
  let_go(e)
  redis.call('DEL', e.key)
end
void(e)
if ends ~= '' and c.w then
  c.w[ends] = nil
  if not next(c.w) then c.w = nil end
end
if begins ~= '' then
  c.w = c.w or {}
  c.w[begins] = {now + tonumber(ARGV[8]), tonumber(ARGV[8])}
end
if quarantine > 0 then
  local q = c.q
  local last, life, version, names = now + quarantine, quarantine, floor, under
  if q then
    if q[1] > last then last, life = q[1], q[2] end
    if version == '' or q[3] == '' or not same_names(q[4], under) then
      version, names = '', ''
    elseif q[3] > version then
      version = q[3]
    end
  end
  c.q = {last, life, version, names}
end
if floor ~= '' then raise_floor(e, floor, under, tonumber(ARGV[6])) end
save(e)
tell(e, ARGV[1], ARGV[2])
return head or known and 2 or 1
