"""What one guard owns in a process: engines, connections, and what a fork does to them.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""
