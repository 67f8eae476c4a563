-- LEASE: the fresh value, or the right to load it.
-- KEYS[1] the entry
-- ARGV    token, lease ms, grace ms, floor ms (a value that stays fresh no longer than this does not count; 2^53 - 1: none
--         does, and failures do not count either),
--         awaited (the token of a lease that this caller waited for, or ''),
--         unusable (SHA-1 of a value that this caller cannot use, or '')
-- Reply   {word, now, header and value or false, ...}: HIT | GRANTED, failures in a row so far, ms that nobody loaded
--         after the last | WAIT, ms left, holder's token | BYPASS, ms left (a write is under way; 0: not for us)
--         | FAILED, what another's load died of, failures in a row, ms that nobody loads
-- needs: prelude
local e = open(KEYS[1])
if e.foreign then return {'BYPASS', now, false, 0} end
local c, token, wanted = e.c, ARGV[1], tonumber(ARGV[4])
local usable = is_usable(e, ARGV[6])
local raw = usable and raw_of(e)
if usable and is_fresh(e) and e.fresh - now > wanted then return {'HIT', now, raw} end
local x = c.x
if c.l and c.l[3] == token then return {'GRANTED', now, raw, x and x[4] or 0, x and x[6] or 0} end
local write = written_until(e)
if write > 0 then
  save_cut(e)
  return {'BYPASS', now, false, write - now}
end
if c.l then
  cut, c.l[4] = cut or c.l[4] ~= 1, 1
  save_cut(e)
  return {'WAIT', now, raw, c.l[1] - now, c.l[3]}
end
if x then
  local paused = x[1] - x[2] + x[6] - now -- x[1] - x[2] is when it failed
  if wanted >= 9007199254740991 then
    x, c.x = nil, nil
  elseif paused > 0 or (ARGV[5] ~= '' and x[3] == ARGV[5]) then
    save_cut(e)
    return {'FAILED', now, raw, x[5], x[4], math.max(0, paused)}
  end
end
c.l = {now + tonumber(ARGV[2]), tonumber(ARGV[2]), token}
-- Loaded in a quarantine is loaded in a quarantine, even if that is over by the time of the fill.
if c.q then c.l[4], c.l[5], c.l[6] = 0, c.q[3], c.q[4] end
outlive(e, tonumber(ARGV[2]) + tonumber(ARGV[3]))
save(e)
return {'GRANTED', now, usable and raw_of(e), x and x[4] or 0, x and x[6] or 0}
