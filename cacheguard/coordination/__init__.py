"""What is useful beside the cache as well: the circuit breaker."""
