"""Private redis-servers, from where users have them, too."""

from cacheguard.testing.redis_server import (
    PORTS,
    NoRedisError,
    RedisServer,
    find_binaries,
    find_binary,
    is_free,
    own_ports,
)

__all__ = ["PORTS", "NoRedisError", "RedisServer", "find_binaries", "find_binary", "is_free", "own_ports"]
