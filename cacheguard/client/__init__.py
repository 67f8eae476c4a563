"""One Redis server, and everything that knows redis-py; what redis-py does not promise is in `redispy`."""
