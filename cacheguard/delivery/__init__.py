"""Invalidations that must arrive at Redis, and those of others that must have been heard.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""
