"""The faults that `FaultProxy` can inject, and the traffic that it sees."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from enum import Enum, auto

GARBAGE = b"\x00\xff this is no reply\r\n"


class Fault(Enum):
    """A fault of the connection.

    All but `REFUSE` and `BLACKHOLE` strike a reply, so the command has been executed. Messages that a server pushes to
    a subscriber are not replies and pass.
    """

    NONE = auto()
    REFUSE = auto()  # open and new connections are closed
    LOSE_REPLY = auto()  # the command arrives, its reply does not, the connection ends
    HALF_REPLY = auto()  # the first half of the reply, then the end
    CUT = auto()  # *at* bytes of the reply, then the end
    RESET = auto()  # *at* bytes of the reply, then the connection is reset (RST)
    DELAY = auto()  # the reply comes late
    BLACKHOLE = auto()  # connections stay open, bytes vanish both ways
    GARBAGE = auto()  # bytes that are not a reply, then the end
    DRIBBLE = auto()  # the reply comes byte by byte
    THROTTLE = auto()  # the reply comes at *rate* bytes a second


STANDING = (Fault.REFUSE, Fault.BLACKHOLE)
LASTING = (Fault.CUT, Fault.RESET, Fault.DRIBBLE, Fault.THROTTLE)  # strike all of a long reply
DRIBBLE_PAUSE = 0.001  # seconds between two bytes, unless the test says otherwise
THROTTLED_PIECES = 50  # in a second


@dataclass(frozen=True, slots=True, eq=False)
class Strike:
    """A fault and its parameters; `over` is set when another fault replaces it."""

    fault: Fault
    only: bytes = b""
    seconds: float = 0.0
    at: int = 0
    rate: float = 0.0
    data: bytes = GARBAGE
    over: threading.Event = field(default_factory=threading.Event)


WHOLE = Strike(Fault.NONE)


@dataclass
class Traffic:
    """The requests seen while watching, one entry for everything sent before the next reply.

    Heartbeats of the invalidation bus do not count, because they are sent at any time. Handshakes of new connections
    count: warm the client up before watching. A request that the server begins to answer before it was sent in full
    (megabytes of pipeline) counts more than once.
    """

    requests: list[bytes] = field(default_factory=list[bytes])

    @property
    def round_trips(self) -> int:
        """The number of round trips."""
        return len(self.requests)


def is_heartbeat(request: bytes) -> bool:
    """True if *request* is a heartbeat: a message of a process to itself over the invalidation bus."""
    return request.startswith(b"*3\r\n$7\r\nPUBLISH") and b":bus:" in request
