-- MARK: the nonce of a namespace or a tag, made if there is none.
-- KEYS[1] the marker
-- ARGV    nonce to use if there is none (8 bytes), ms that it must be kept at least
-- Reply   {nonce, nonce of the last invalidation of a tag beneath it, ms that a quarantine goes on, ms that one goes on of
--         some tag beneath it}
-- needs: prelude
local e = open(KEYS[1])
if e.foreign then return redis.error_reply('ERR another release has written this marker') end
local keep, value = tonumber(ARGV[2]), value_of(e)
local quarantine, beneath = e.c.q and e.c.q[1] - now or 0, e.c.t and e.c.t[1] - now or 0
if not value then
  value = ARGV[1] .. string.rep('\0', 8)
  e.fresh, e.span, e.dead, e.born = 0, 0, now + 2 * keep, now
  put(e, value)
elseif e.dead - now < keep then -- twice, so that it is not written at every miss
  e.dead = now + 2 * keep
  save(e)
end
return {string.sub(value, 1, 8), string.sub(value, 9, 16), quarantine, beneath}
