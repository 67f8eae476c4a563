"""Tools for tests of a cached application; cacheguard's own tests use them, too.

They need no test framework. For pytest, the plugin of this distribution has fixtures for them, named `cacheguard_…`.
"""

from .aliasing import AliasingChecker, AliasingError, SharedChange, check_aliasing
from .checker import Reading, StalenessChecker, StaleRead
from .clock import ClockStoodStillError, VirtualClock
from .faults import Fault, Traffic
from .loader import CountingLoader
from .proxy import FaultProxy
from .redis_server import NoRedisError, RedisServer, find_binaries, find_binary

__all__ = [
    "AliasingChecker",
    "AliasingError",
    "ClockStoodStillError",
    "CountingLoader",
    "Fault",
    "FaultProxy",
    "NoRedisError",
    "Reading",
    "RedisServer",
    "SharedChange",
    "StaleRead",
    "StalenessChecker",
    "Traffic",
    "VirtualClock",
    "check_aliasing",
    "find_binaries",
    "find_binary",
]
