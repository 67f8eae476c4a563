"""The objects that users hold, blocking and async: decorated functions, guarded writes, Bloom filters.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""
