"""Penetration: keys that exist nowhere. The Bloom filter in front of the loader, and a bound on stored absences.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""
