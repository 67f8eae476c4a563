"""Four disasters on one machine, each with cache-aside as it is usually written and with cacheguard.

`disasters` says what happens, `sides` how the two applications read and write, `traffic` and `worker` send the
requests, `shop` is the database, `meter` counts there, `stage` runs it all, `screen` and `report` show it.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""
