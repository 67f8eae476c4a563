"""The order of steps of a read and of a write, once for threads and event loops.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""
