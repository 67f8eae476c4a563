-- TAGGED: some tag of this namespace is invalidated now; a load under way that claims a tag only later must know.
-- KEYS[1] the marker of the namespace
-- ARGV    (none)
-- Reply   1
-- needs: prelude
local K = KEYS[1]
redis.call('HDEL', K, 'x') -- the first write: a full server lets the rest of the script through
if redis.call('EXISTS', K) == 1 then redis.call('HSET', K, 'l', server_now()) end
return 1
