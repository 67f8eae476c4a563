"""What users hold, in both colours: decorated functions, guarded writes, Bloom filters.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""
