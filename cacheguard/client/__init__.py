"""One Redis server, and everything that knows redis-py; what redis-py does not promise is in `redispy`.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""
