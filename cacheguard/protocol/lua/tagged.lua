-- TAGGED: some tag of this namespace is invalidated now; a load under way that claims a tag only later must know.
-- KEYS[1] the marker of the namespace
-- ARGV    nonce (16 bytes) of this invalidation
-- Reply   1
-- needs: prelude
local e = open(KEYS[1])
if e.vlen > 0 then
  although_full(e)
  redis.call('SETRANGE', e.key, H + 16, ARGV[1])
  redis.call('PEXPIREAT', e.key, end_of(e))
end
return 1
