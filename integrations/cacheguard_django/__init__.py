"""Django cache backend, and invalidation bound to transactions."""
