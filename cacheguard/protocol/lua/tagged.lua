-- TAGGED: some tag of this namespace is invalidated now; a load under way that claims a tag only later must know.
-- KEYS[1] the marker of the namespace
-- ARGV    nonce (8 bytes) of this invalidation, ms that what is cached under the tag is quarantined
-- Reply   1
-- needs: prelude
local e = open(KEYS[1])
if e.foreign then return 1 end -- nothing of ours is filled under it
local lag, t = tonumber(ARGV[2]), e.c.t
although_full(e)
if lag > 0 and not (t and t[1] > now + lag) then e.c.t = {now + lag, lag} end
if e.vlen > 0 then put(e, string.sub(value_of(e), 1, 8) .. ARGV[1]) else save(e) end
return 1
