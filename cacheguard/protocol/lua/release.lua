-- RELEASE: give a lease back without filling; a failed load leaves a word for others.
-- KEYS[1] the entry
-- ARGV    token, what the load died of ('' if it did not), failures in a row, ms that nobody else loads, ms that the
--         word is kept, channel
-- Reply   1 the lease was still held | 0 it was gone
-- needs: prelude
local e = open(KEYS[1])
local c, kept = e.c, tonumber(ARGV[5])
if not c.l or c.l[3] ~= ARGV[1] then return 0 end
although_full(e)
local awaited = c.l[4] == 1
c.l = nil
if ARGV[2] ~= '' then
  c.x = {now + kept, kept, ARGV[1], tonumber(ARGV[3]), ARGV[2], math.min(tonumber(ARGV[4]), kept)}
end
save(e)
if awaited then wake(e, ARGV[6]) end
return 1
