"""A script that makes time pass for one key: every deadline under it comes nearer by as much."""

from __future__ import annotations

from cacheguard.protocol.lua import load

PRELUDE = load("renew").source.split("-- RENEW")[0]

# ARGV: ms that pass.
AGE = (
    PRELUDE
    + """
local e, ms = open(KEYS[1]), tonumber(ARGV[1])
e.fresh, e.dead, e.born = e.fresh - ms, e.dead - ms, e.born - ms
for _, name in ipairs({'l', 'q', 'f', 'x', 't'}) do
  if e.c[name] then e.c[name][1] = e.c[name][1] - ms end
end
for _, name in ipairs({'w', 'r', 'g'}) do
  for _, claim in pairs(e.c[name] or {}) do claim[1] = claim[1] - ms end
end
if e.c.b then e.c.b = e.c.b - ms end
if e.vlen > 0 and e.fresh < 0 then e.fresh = 0 end
save(e)
"""
)
