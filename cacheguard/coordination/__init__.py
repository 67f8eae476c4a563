"""What is useful beside the cache as well: the circuit breaker.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""
