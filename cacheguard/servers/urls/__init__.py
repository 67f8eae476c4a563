"""URLs, read as places to connect to.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""
