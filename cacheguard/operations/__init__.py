"""The command line and what it shows; nothing below imports it.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""
