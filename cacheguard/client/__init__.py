"""One Redis server, and everything that knows redis-py."""
