"""What can happen to a wire, and what passes over it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from enum import Enum, auto

GARBAGE = b"\x00\xff this is no reply\r\n"


class Fault(Enum):
    """What happens to the wire.

    All but `REFUSE` and `BLACKHOLE` strike a reply, so the command has been executed. Messages that a server pushes to
    a subscriber are no replies and pass.
    """

    NONE = auto()
    REFUSE = auto()  # open connections end, new ones too
    LOSE_REPLY = auto()  # the command arrives, its reply does not, the connection ends
    HALF_REPLY = auto()  # the first half of the reply, then the end
    CUT = auto()  # so many bytes of the reply, then the end
    RESET = auto()  # so many bytes of the reply, then the connection is reset (RST)
    DELAY = auto()  # the reply comes late
    BLACKHOLE = auto()  # connections stay open, bytes vanish both ways
    GARBAGE = auto()  # something that is no reply, then the end
    DRIBBLE = auto()  # the reply comes byte by byte
    THROTTLE = auto()  # the reply comes at so many bytes a second


STANDING = (Fault.REFUSE, Fault.BLACKHOLE)
LASTING = (Fault.CUT, Fault.RESET, Fault.DRIBBLE, Fault.THROTTLE)  # strike all of a long reply
DRIBBLE_PAUSE = 0.001  # seconds between two bytes, unless the test says otherwise
THROTTLED_PIECES = 50  # in a second


@dataclass(frozen=True, slots=True, eq=False)
class Strike:
    """A fault and how it strikes; `over` goes up when another one takes its place."""

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

    Heartbeats of the invalidation bus do not count: they go out by the clock, whatever a test does. Handshakes of new
    connections do: warm the client up before watching. A request that the server begins
    to answer before it was sent in full (megabytes of pipeline) counts more than once.
    """

    requests: list[bytes] = field(default_factory=list[bytes])

    @property
    def round_trips(self) -> int:
        """How many there were."""
        return len(self.requests)


def is_heartbeat(request: bytes) -> bool:
    """Whether a process has sent something to itself over the invalidation bus."""
    return request.startswith(b"*3\r\n$7\r\nPUBLISH") and b":bus:" in request
