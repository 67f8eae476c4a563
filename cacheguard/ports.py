"""The seams the library is written against: a way to Redis, and a way to wait.

Everything between the front door and these two protocols is written once, as coroutines. Under the blocking
runtime each of the methods below blocks instead of suspending, so the same coroutine runs to its end on a
single ``send(None)``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from .errors import Unreachable
from .faults import Fault

T = TypeVar("T")

Arg = str | bytes | int
Reply = Any  # what a Redis server may answer: bytes, int, None, or a list of these
Command = tuple[Arg, ...]

CHANGES = 3  # servers in a row that turn out to be others


@dataclass(frozen=True, slots=True, eq=False)
class Script:
    """A Lua script: its file's name, its text, and the SHA-1 that Redis knows it by."""

    name: str
    source: str
    sha: str

    def __call__(self, *keys: str) -> Callable[..., ScriptCall]:
        """Name the keys, then give the arguments: ``LEASE(key)(token, lease_ms)``."""
        return lambda *args: ScriptCall(self, keys, args)


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """One run of a script. Every script of ours may run twice without harm."""

    script: Script
    keys: tuple[str, ...]
    args: tuple[Arg, ...]


Call = Command | ScriptCall


class AnotherServer(Exception):  # noqa: N818 - an event, not a fault
    """A connection has reached another server than before; raised before anything was sent over it.

    What the old one acknowledged may be unknown to this one. Once that has been repeated, the caller may ask again.
    """


async def until_steady(work: Callable[[], Awaitable[T]], *, failed: int = 0) -> T:
    """The result of *work*, tried again while it raises `AnotherServer`; `Unreachable` if it does so too often.

    Args:
        failed: how many times the caller has tried by itself.
    """
    for _ in range(failed, CHANGES):
        with suppress(AnotherServer):
            return await work()
    raise Unreachable(f"the server was another one {CHANGES} times in a row")


class PartlyUnreachable(Unreachable):
    """Some of several servers could not be asked.

    Args:
        replies: what was answered; an `Unreachable` stands for what was not.
    """

    def __init__(self, replies: list[Reply], cause: Unreachable) -> None:
        super().__init__(str(cause))
        self.fault: Fault = cause.fault
        self.replies = replies


class Commands(Protocol):
    """A way to Redis. One ``send`` is one round trip, whatever the number of calls."""

    @property
    def away(self) -> bool:
        """Whether it is known that nothing would be asked now: whoever asks is told so at once."""
        ...

    async def send_each(self, *calls: Call) -> list[Reply]:
        """Run *calls* in order and return their replies; an error that the server answered stands as a `Refused`.

        Raises `Unreachable` if the server could not be asked, `PartlyUnreachable` if that is true of some of several.
        Calls are safe to repeat, so an implementation may send them again after a lost connection or an unknown script.
        """
        ...

    async def send(self, *calls: Call) -> list[Reply]:
        """Like `send_each`, but raises the first `Refused`."""
        ...

    async def masters(self) -> Sequence[Commands]:
        """The servers that share the entries among them, each asked directly; one, unless it is a cluster."""
        ...


class Replicas(Protocol):
    """A way to copies of what the masters have."""

    async def ask(self, *calls: Call) -> tuple[list[Reply], float] | None:
        """What replicas answer, and a moment (monotonic seconds): whatever a master did before it is in the answers.

        None if they cannot be asked, or there is no such moment. Commands only, no scripts.
        """
        ...


class Bulkhead(Protocol):
    """A bound on the loads that run at once."""

    patience: float
    """Seconds that one waits in line."""

    def try_enter(self) -> bool:
        """Take a permit if one is free."""
        ...

    async def enter(self, runtime: Runtime) -> None:
        """Take a permit; wait in the queue if none is free; `Overloaded` if none comes free in time."""
        ...

    def leave(self) -> None:
        """Give the permit back."""
        ...


class Signal(Protocol):
    """A flag that is raised once, by any thread."""

    def set(self) -> None: ...

    async def wait(self, timeout: float | None) -> bool:
        """Wait until the flag is up, at most *timeout* seconds; false if it is still down."""
        ...


class Watch(Protocol):
    """The clockwork beside a running load; `stop` ends it."""

    def stop(self) -> None: ...


class Runtime(Protocol):
    """A way to wait: threads, or the tasks of one event loop."""

    commands: Commands

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def random(self) -> float:
        """A number in [0, 1)."""
        ...

    def token(self) -> str:
        """128 random bits, as text."""
        ...

    def here(self) -> int | None:
        """The thread that runs here, where one thread does one thing at a time; None in an event loop."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    def signal(self) -> Signal: ...

    async def start(self, work: Coroutine[Any, Any, None], *, detached: bool) -> bool:
        """Run *work* in its own right: its caller may be cancelled, the work goes on.

        A blocking runtime runs it here and now unless it is *detached*. False if a detached work found no room and
        was closed unstarted.
        """
        ...

    async def through(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of *work*, which goes on to its end even if the caller is cancelled; the cancellation follows."""
        ...

    async def call(self, load: Callable[[], Any]) -> Any:
        """Run the user's loader."""
        ...

    async def each(self, works: Sequence[Callable[[], Coroutine[Any, Any, Any]]], most: int) -> list[Any]:
        """Run *works*, at most *most* at once, and return their results in order."""
        ...

    def watch(
        self,
        beat: Callable[[], Coroutine[Any, Any, None]],
        every: float,
        late: Callable[[], Coroutine[Any, Any, None]],
        deadline: float | None,
    ) -> Watch:
        """Run *beat* every so many seconds and *late* once, *deadline* seconds from now; beats end there."""
        ...
