"""The circuit breakers of the servers of one guard, and the thread that finds out whether they are well again."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable
from typing import Literal

from ..defenses.outage import BreakerTerms, Outcome, State, Switch
from ..errors import Unreachable
from ..events import Events, log
from ..faults import TREATMENTS, Fault, Remedy
from ..protocol.frameless import frameless
from ..runtime.bell import Bell

DENIED_FOR = 1.0  # seconds; what a wrong password or certificate was refused for will not change sooner
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.5  # seconds; a thread of ours probes, so what it costs no caller pays
SHORTEST_WAIT = 0.005
MOMENT = 0.001
WAKES = 3  # times that a thread waits for its turn while it asks
LOOKS = 25
ALARM = 0.05  # seconds that a caller waits for the first probe after an alarm: a server that is well answers in one

_ours = threading.local()


def wait_freely() -> None:
    """This thread is one of ours, in which no caller waits: an open breaker does not hold it up."""
    _ours.free = True


def _is_ours() -> bool:
    return getattr(_ours, "free", False)


class Circuit(Switch):
    """The breaker of one server."""

    def __init__(self, circuits: Circuits, name: str, terms: BreakerTerms) -> None:
        super().__init__(
            name,
            terms,
            on_change=self._changed,
            now=time.monotonic,
            new_lock=threading.RLock,
            probed_by_callers=False,
        )
        self._decided = Bell()
        self._circuits: weakref.ref[Circuits] = weakref.ref(circuits)
        self.over = False  # the guard is being closed: our own threads ask nothing more
        self._events = circuits.events

    def ask(self) -> int:
        """May the server be asked? What to `leave` with afterwards; `Unreachable`, at once, if it is left alone.

        Nothing that a thread of ours does while it is open says anything, but for the probe: -1.
        """
        if self.closed and not self.over:
            return self.turn
        if self.over and _is_ours():
            raise Unreachable("the guard is closed", Fault.LEFT_ALONE)
        if self.undecided and not _is_ours():
            self._decided.pause(ALARM)
        return self.ask_now()

    async def asked(self) -> int:
        """`ask`, where a thread must not be blocked."""
        if self.undecided:
            for _ in range(LOOKS):
                await asyncio.sleep(ALARM / LOOKS)
                if not self.undecided:
                    break
        return self.ask_now()

    def ask_now(self) -> int:
        """`ask`, without waiting for anything."""
        turn = self.enter()
        if turn is None:
            if _is_ours():
                return -1
            self._events.l2_skips += 1
            raise Unreachable("Redis is left alone until it is well again", Fault.LEFT_ALONE)
        return turn

    def wired(self, door: Literal["threads", "tasks"], way: str) -> None:
        """A new connection of *door* is read in this *way*: see `Stats.wire`."""
        self._events.wired(door, way)

    @property
    def away(self) -> bool:
        """Whether whoever asks here would be refused."""
        return not (self.closed or self.undecided or self.probed_by_callers or _is_ours())

    def admit(self) -> None:
        """May a connection be attempted? Raises what an attempt was refused for a moment ago, if it was."""
        circuits = self._circuits()
        if circuits is not None:
            circuits.admit()

    def connected(self, error: Unreachable | None) -> None:
        """An attempt has succeeded, or failed with *error*."""
        circuits = self._circuits()
        if circuits is not None:
            circuits.attempted(error)

    def failed(self, turn: int, fault: Fault) -> None:
        """What was let pass has met *fault*."""
        treatment = TREATMENTS[fault]
        if not treatment.counts:
            self.leave(turn, Outcome.NONE)
            return
        self.leave(turn, Outcome.FAILED)
        if treatment.doubtful:
            self.doubt(turn, f"a call ended with: {fault}")

    def after_fork(self) -> None:
        """Begin anew; a thread of the parent may have held a lock."""
        super().after_fork()
        self._decided = Bell()

    def _changed(self, before: State, after: State, why: str) -> None:
        if before == "closed":
            self._decided.clear()
        elif after != "half-open":
            self._decided.set()
        circuits = self._circuits()
        if circuits is not None:
            circuits.changed(self, before, after, why)


class Circuits:
    """The breakers of one guard, by the names of its servers; shared by its threads and its event loops.

    Args:
        timeout: seconds of one operation; a call that takes half of that is slow.
    """

    def __init__(self, timeout: float, events: Events) -> None:
        self.events = events
        self._terms = BreakerTerms(slow_after=timeout / 2, pause=FIRST_PAUSE, longest_pause=LONGEST_PAUSE)
        self._circuits: dict[str, Circuit] = {}
        self._probe: Callable[[str], float] | None = None
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._wake = Bell()
        self._thread: threading.Thread | None = None
        self._denied: tuple[float, Unreachable] | None = None

    def of(self, name: str) -> Circuit:
        """The breaker of one server."""
        with self._lock:
            circuit = self._circuits.get(name)
            if circuit is None:
                circuit = self._circuits[name] = Circuit(self, name, self._terms)
                circuit.over = self._closed
            return circuit

    def drop(self, name: str) -> None:
        """There is no such server any more; who still holds on to it finds out by himself."""
        with self._lock:
            circuit = self._circuits.pop(name, None)
            if circuit is not None:
                circuit.probed_by_callers = True
            self._tell()

    def probe_with(self, probe: Callable[[str], float]) -> None:
        """*probe* asks one server whether it is well, and delivers pending invalidations.

        It returns the seconds that the answer took, and raises `Unreachable` if there was none.
        """
        self._probe = probe

    # Attempts that are of no use

    def admit(self) -> None:
        """May a connection be attempted? Raises what the last attempt was refused for, if that is only just past."""
        if self._denied is not None:
            at, error = self._denied
            if time.monotonic() < at + DENIED_FOR:
                raise Unreachable(str(error), error.fault) from error.__cause__
            self._denied = time.monotonic(), error  # this one may find out; who comes meanwhile need not

    def attempted(self, error: Unreachable | None) -> None:
        """A connection stands, or could not be had; where that will not change soon, nobody tries again soon."""
        if error is None:
            self._denied = None
        elif TREATMENTS[error.fault].first is Remedy.GIVE_UP:
            self._denied = time.monotonic(), frameless(error) or Unreachable(str(error), error.fault)

    # Changes

    def changed(self, circuit: Circuit, before: State, after: State, why: str) -> None:
        """A breaker has changed its state."""
        if after == "open":
            self._start(circuit)
        self._tell()
        self.events.breaker_changed(circuit.name or "Redis", before, after, why)

    def _tell(self) -> None:
        states = {circuit.state for circuit in self._circuits.values()}
        self.events.breaker = next((state for state in ("open", "half-open") if state in states), "closed")

    # The thread

    def _start(self, circuit: Circuit) -> None:
        with self._lock:
            if self._closed:
                return
            if self._thread is not None:
                self._wake.set()
                return
            self._thread = threading.Thread(
                target=_run, args=(weakref.ref(self), self._wake), name="cacheguard-probe", daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError:  # the system has no thread to give, or the interpreter is going
                self._thread = None
                circuit.probed_by_callers = True

    def look(self) -> float | None:
        """Probe what is due; the seconds until the next one is, None if all are well: the thread ends then."""
        circuits = list(self._circuits.values())
        for circuit in circuits:
            if not circuit.closed and not self._closed:
                self._find_out(circuit)
        with self._lock:
            waits = [circuit.waits for circuit in self._circuits.values() if not circuit.closed]
            if not waits or self._closed:
                self._thread = None
                return None
        return max(SHORTEST_WAIT, min(waits))

    def _find_out(self, circuit: Circuit) -> None:
        turn = circuit.probe()
        if turn is None or self._probe is None:
            return
        late = _lateness()
        try:
            took = self._probe(circuit.name)
        except Unreachable as error:
            circuit.leave(turn, Outcome.FAILED if TREATMENTS[error.fault].counts else Outcome.OK)
        except Exception:  # noqa: BLE001 - whatever it is, nobody else finds out: without this thread it stays open
            log.exception("a probe of %s failed", circuit.name or "Redis")
            circuit.leave(turn, Outcome.FAILED)
        else:
            # Where this process gets no time itself, the server is not to blame.
            circuit.leave(turn, Outcome.OK, max(0.0, took - WAKES * max(late, _lateness())))

    def stop(self) -> None:
        """Let the thread end; it asks no server any more."""
        with self._lock:
            self._closed = True
            for circuit in self._circuits.values():
                circuit.over = True
        self._wake.set()

    def close(self, until: float = float("inf")) -> None:
        """End the thread; *until* (monotonic seconds) is how long to wait for that."""
        self.stop()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(min(threading.TIMEOUT_MAX, max(0.0, until - time.monotonic())))

    def after_fork(self) -> None:
        """Forget the parent's thread; this process finds out for itself."""
        self._reset()
        for circuit in self._circuits.values():
            circuit.after_fork()
        self._tell()


def _lateness() -> float:
    """How many seconds too late this thread comes back from a moment's sleep."""
    began = time.monotonic()
    time.sleep(MOMENT)
    return max(0.0, time.monotonic() - began - MOMENT)


def _run(me: weakref.ref[Circuits], wake: Bell) -> None:
    wait_freely()
    while True:
        circuits = me()
        if circuits is None:
            return
        pause = circuits.look()
        del circuits
        if pause is None:
            return
        wake.pause(pause)
        wake.clear()
