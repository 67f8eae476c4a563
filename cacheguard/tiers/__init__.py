"""Where entries live: in the process, and in Redis.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""
