"""The interfaces that the engine uses: `Commands` to reach Redis, and `Runtime` to wait.

All code between `CacheGuard` and these two protocols is written once, as coroutines. Under the blocking runtime, each
of the methods below blocks instead of suspending, so the same coroutine runs to its end on a single ``send(None)``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from .errors import Unreachable
from .faults import Fault

T = TypeVar("T")

Arg = str | bytes | int
Reply = Any  # the answer of a Redis server: bytes, int, None, or a list of these
Command = tuple[Arg, ...]

STANDS_STILL = 1.0  # seconds without a turn, after which nobody waits for an event loop any more
CHANGES = 3  # changes of the server in a row, before a call gives up


class Script:
    """A Lua script: the name of its file, its text, and its SHA-1 in Redis."""

    # No dataclass: tools that print one field by field would print the whole text.
    __slots__ = ("name", "sha", "source")

    name: str
    source: str
    sha: str

    def __init__(self, name: str, source: str, sha: str) -> None:
        self.name = name
        self.source = source
        self.sha = sha

    def __repr__(self) -> str:
        return f"<Script {self.name}>"

    def __call__(self, *keys: str) -> Callable[..., ScriptCall]:
        """Name the keys, then give the arguments: ``LEASE(key)(token, lease_ms)``."""
        return lambda *args: ScriptCall(self, keys, args)


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """One run of a script. All scripts of the library are safe to repeat."""

    script: Script
    keys: tuple[str, ...]
    args: tuple[Arg, ...]


Call = Command | ScriptCall


class AnotherServer(Exception):  # noqa: N818 - an event, not a fault
    """A connection reached another server than before; raised before anything was sent over it.

    The new server may not know the invalidations that the old one acknowledged. Once the journal is repeated, the
    caller may send again.
    """


async def until_steady(work: Callable[[], Awaitable[T]], *, failed: int = 0) -> T:
    """Return the result of *work*; repeat it while it raises `AnotherServer`. `Unreachable` after three times.

    Args:
        failed: how many attempts the caller has made already.
    """
    for _ in range(failed, CHANGES):
        with suppress(AnotherServer):
            return await work()
    raise Unreachable(f"the server was another one {CHANGES} times in a row")


class PartlyUnreachable(Unreachable):
    """Some of several servers were unreachable.

    Args:
        replies: the replies in order, with an `Unreachable` in place of each missing one.
    """

    def __init__(self, replies: list[Reply], cause: Unreachable) -> None:
        super().__init__(str(cause))
        self.fault: Fault = cause.fault
        self.replies = replies


class Commands(Protocol):
    """Access to Redis. One ``send`` is one round trip for any number of calls."""

    @property
    def away(self) -> bool:
        """True if a call would fail at once, without a request to Redis."""
        ...

    async def send_each(self, *calls: Call) -> list[Reply]:
        """Run *calls* in order and return their replies; an error reply is returned as a `Refused`.

        ``MGET`` may name keys of several servers. ``TIME``, behind calls that read, is asked of each of their servers;
        where there are several, its reply is a dictionary by key.

        Raises `Unreachable` if the server is unreachable, `PartlyUnreachable` if some of several servers are. Calls are
        safe to repeat, so an implementation may send them again after a lost connection or an unknown script.
        """
        ...

    async def send(self, *calls: Call) -> list[Reply]:
        """Like `send_each`, but raises the first `Refused`."""
        ...

    async def masters(self) -> Sequence[Commands]:
        """Return direct access to each master that holds entries: several on a cluster, otherwise one."""
        ...


@runtime_checkable
class ShortCommands(Protocol):
    """What the commands of one server have beside `Commands`: the question about one entry, half packed beforehand."""

    def read_entry(self, key: str, markers: tuple[str, ...]) -> Awaitable[list[Reply]]:
        """Return the replies to ``MGET key markers…`` and ``TIME``, with all that `Commands.send_each` says."""
        ...


class Replicas(Protocol):
    """Access to the replicas of the masters."""

    async def ask(self, *calls: Call) -> tuple[list[Reply], Reply, float] | None:
        """Return the replies of replicas, by key what each of them says to TIME, and a time (monotonic seconds).

        The replies contain all that masters did before that time.

        None if the replicas are unreachable, or if there is no such time. Commands only, no scripts.
        """
        ...


class Bulkhead(Protocol):
    """A limit on concurrent loads."""

    patience: float
    """Seconds that a load waits in the queue."""

    def try_enter(self) -> bool:
        """Take a permit if one is free; return True if so."""
        ...

    async def enter(self, runtime: Runtime) -> None:
        """Take a permit; wait in the queue if none is free; `Overloaded` if none comes free in time."""
        ...

    def leave(self) -> None:
        """Give the permit back."""
        ...


class Signal(Protocol):
    """A flag that any thread sets once."""

    def set(self) -> None: ...

    async def wait(self, timeout: float | None) -> bool:
        """Wait until the flag is set, at most *timeout* seconds; return False if it is not set."""
        ...


class Watch(Protocol):
    """The timer of a running load or write; `stop` ends it."""

    def stop(self) -> None: ...


class Home(Protocol):
    """Where a piece of work goes on: a thread, or an event loop in a thread."""

    @property
    def thread(self) -> int:
        """The id of the thread."""
        ...

    @property
    def loop(self) -> object | None:
        """The event loop of which the work is a task; None if it blocks its thread."""
        ...

    @property
    def inside(self) -> bool:
        """True if it blocks a thread in which an event loop runs, which does not turn meanwhile."""
        ...

    def held_up_by(self, waiter: Home) -> bool:
        """True if work here cannot go on while *waiter* waits."""
        ...

    def stands_still(self) -> bool:
        """True if work here does not go on: its event loop has not turned for a second since it was first asked."""
        ...


class Runtime(Protocol):
    """The way to wait: threads, or the tasks of one event loop."""

    commands: Commands

    def now(self) -> float:
        """Return monotonic seconds."""
        ...

    def random(self) -> float:
        """Return a random number in [0, 1)."""
        ...

    def token(self) -> str:
        """Return 128 random bits as text."""
        ...

    def here(self) -> Home | None:
        """Return where the current piece of work goes on; None if nothing here can hold up other work."""
        ...

    async def sleep(self, seconds: float, until: Signal | None = None) -> None:
        """Sleep; *until* ends it early."""
        ...

    def signal(self) -> Signal: ...

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Call *what* in about *seconds*, unless the guard is closed or the event loop has ended by then."""
        ...

    async def start(self, work: Coroutine[Any, Any, None], *, detached: bool) -> bool:
        """Run *work* independently of its caller: if the caller is cancelled, the work continues.

        A blocking runtime runs it in the caller's thread, unless it is *detached*. Returns False if there was no thread
        for detached work; it is then closed and never starts.
        """
        ...

    async def through(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Return the result of *work*. A cancellation of the caller is raised only after the work has ended."""
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
        """Run *beat* every *every* seconds, and *late* once after *deadline* seconds; no beats follow it."""
        ...
