"""Several Redis servers: cluster, replicas, a ring of plain nodes, and the URLs that name them.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""
