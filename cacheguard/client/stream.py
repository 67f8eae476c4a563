"""One connection of an event loop, written and read by ourselves: many questions under way, their answers in order.

```
ask             one question: written at once if nobody else asks, else with all others of this turn, in one piece
  |             (the same reading twice in an unsent piece travels once)
data_received   what has come is given to hiredis, and each whole answer to whoever asked
  |
Owner.lost      the connection is gone, or of no use: whatever was not answered goes back to the lane
```

A caller that is cancelled leaves its place in the line behind: its answer is read, and dropped. Nothing is ever taken
out of the line but by an answer, so nobody gets another's.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from time import monotonic
from typing import Any, Protocol

from ..defenses.outage import Outcome
from ..errors import Refused
from ..faults import Fault
from ..ports import Reply
from . import resp
from .circuits import Circuit
from .identity import Identity
from .wire import Standing

LATE = 0.1  # of a timeout; a timer later than this says more about this loop than about the server
_BYTES = False  # whether the reader makes text of what it has read
LARGE = 65536  # bytes of a value that would hold up small ones

Answer = asyncio.Future[list[Reply]]
# What is to be sent, how many replies it has, who waits for them (each gets a list of its own), the key if it is a
# reading of one (asked twice at once it is sent once), and whether it was sent before, over a connection that was lost.
# Plain tuples: there is one for each hit.
Ask = tuple[bytes, int, list[Answer], str | None, bool]
# What was written at once: how many asks the connection had been given with it, the turn of the circuit, and monotonic
# seconds: from when it has one timeout, and when it was written.
Piece = tuple[int, int, float, float]


class Owner(Protocol):
    """Whose connection it is."""

    def lost(self, stream: Stream, error: Exception) -> None:
        """It is of no use any more; *stream* still has what was not answered."""
        ...

    def put_off(self, asks: list[Ask], since: int) -> None:
        """It must not be used now: *asks*, decided in generation *since*, have not been sent."""
        ...

    def demoted(self) -> None:
        """The server is no master any more."""
        ...


class Large:
    """The keys whose values were large when they were read last."""

    MOST = 1000

    def __init__(self) -> None:
        self.keys: dict[str, None] = {}

    def seen(self, key: str, replies: list[Reply]) -> None:
        """What was read of *key*."""
        raws = replies[0]
        if not isinstance(raws, Refused) and raws and type(raws[0]) is bytes and len(raws[0]) >= LARGE:
            if len(self.keys) >= self.MOST:
                del self.keys[next(iter(self.keys))]
            self.keys[key] = None
        else:
            self.keys.pop(key, None)


class Stream(asyncio.Protocol):
    """What a transport calls; made in a task of its loop.

    Args:
        owner: gets back what cannot be answered.
        found: the connection; from here on nobody else reads it.
        generation: of the server that it has reached.
        timeout: seconds for each piece to be answered.
        identity: knows whether the server is still the one that was reached.
        circuit: says whether it is to be left alone, and is told how each piece went.
        large: is told of large values.
    """

    def __init__(
        self,
        owner: Owner,
        found: Standing,
        generation: int,
        *,
        timeout: float,
        identity: Identity,
        circuit: Circuit,
        large: Large,
    ) -> None:
        self.generation: int = generation
        self.used: bool = False  # something was answered
        self._owner, self._found, self._timeout = owner, found, timeout
        self._identity, self._circuit, self._large = identity, circuit, large
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.Context()  # timers and callbacks keep no caller's alive
        self._asked: deque[Ask] = deque()  # written, not answered
        self._replies: list[Reply] = []  # of the first of these
        self._pieces: deque[Piece] = deque()
        self._written = self._answered = 0
        self._unsent: list[Ask] = []
        self._readings: dict[bytes, Ask] = {}  # of the unsent
        self._alone = True  # the last piece was but one ask: others are not likely to come in this turn
        self._full = False
        self.over: bool = False
        self._faults: set[Fault] = set()  # of the first piece
        self._ended = 0.0  # when the last piece was answered
        self._come = 0  # bytes, at most, of what is not answered in whole yet
        self._timer: asyncio.TimerHandle | None = None
        self._rings = 0.0  # when it should
        self._patient_since = 0.0  # the loop was late: what was sent before has one timeout more from here on
        self._telling: set[asyncio.Task[Any]] = set()  # the client, of what has come unasked
        self._odd = (Exception,) if found.push is None else (Exception, found.push)
        self._transport, self._write = found.transport, found.transport.write
        self._transport.set_protocol(self)

    # Writing

    def ask(self, payload: bytes, count: int, key: str | None) -> Answer:
        """Send something; the future of its replies."""
        answer: Answer = self._loop.create_future()
        unsent = self._unsent
        if self._alone and not self._asked and not unsent and not self._full:
            self._asked.append((payload, count, [answer], key, False))
            self._written += 1
            now = monotonic()
            self._pieces.append((self._written, self._circuit.turn, now, now))
            if self._timer is None:
                self._wake_in(self._timeout, now)
            try:
                self._write(payload)
            except Exception as error:  # noqa: BLE001 - what a transport says that is closing
                self._refused(error)
            return answer
        if key is not None:
            same = self._readings.get(payload)
            if same is not None:
                same[2].append(answer)
                return answer
        ask = (payload, count, [answer], key, False)
        if key is not None:
            self._readings[payload] = ask
        if not unsent and not self._full:
            self._loop.call_soon(self._flush, context=self._context)
        unsent.append(ask)
        return answer

    def send(self, asks: list[Ask], turn: int, since: float | None = None) -> None:
        """Write *asks* in one piece, which is to be answered one timeout after *since* (monotonic seconds), or now."""
        now = monotonic()
        begun = now if since is None else since
        self._asked.extend(asks)
        self._written += len(asks)
        self._alone = len(asks) == 1
        self._pieces.append((self._written, turn, begun, now))
        if self._timer is None or self._rings > begun + self._timeout:
            self._wake_in(max(0.0, begun + self._timeout - now), now)
        try:
            self._write(asks[0][0] if len(asks) == 1 else b"".join([ask[0] for ask in asks]))
        except Exception as error:  # noqa: BLE001 - likewise
            self._refused(error)

    def _refused(self, error: Exception) -> None:
        """The transport takes nothing."""
        self.connection_lost(error if isinstance(error, OSError) else OSError(str(error)))

    def _flush(self) -> None:
        """Send what has come together in this turn."""
        unsent = self._unsent
        if not unsent or self._full or self.over:
            return
        self._unsent = []
        self._readings.clear()
        if self._circuit.closed and self._identity.generation == self.generation:
            self.send(unsent, self._circuit.turn)
        else:
            self._owner.put_off(unsent, self.generation)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._flush()

    # Reading

    def data_received(self, data: bytes) -> None:
        asked, replies, gets, nothing = self._asked, self._replies, self._found.gets, self._found.nothing
        self._come += len(data)
        try:
            self._found.feed(data)
            while (reply := gets(_BYTES)) is not nothing:
                if not asked or isinstance(reply, self._odd):
                    reply = self._heard(reply)
                    if reply is nothing:
                        continue
                replies.append(reply)
                _, count, answers, key, _ = asked[0]
                if len(replies) < count:
                    continue
                asked.popleft()
                self._answered += 1
                mine, replies = replies, []
                self._replies = replies
                if key is not None and (self._come >= LARGE or self._large.keys):
                    self._large.seen(key, mine)
                for answer in answers:
                    if not answer.done():
                        answer.set_result(mine if answer is answers[0] else _copy(mine))
                self._come = min(self._come, len(data))
                if self._answered == self._pieces[0][0]:
                    self._end_of_piece()
        except Exception as error:  # noqa: BLE001 - whatever it is, what comes next cannot be told apart
            self._break(error)

    def _heard(self, reply: Reply) -> Reply:
        """What is no plain reply: an error as a value, nothing of what is none; raises what ends the connection."""
        found = self._found
        if found.push is not None and type(reply) is found.push:
            task = self._loop.create_task(found.pushed(reply))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
            return found.nothing
        if not self._asked:
            raise found.lost("a reply that nobody has asked for")
        if not isinstance(reply, found.refusal):
            raise reply
        refused = resp.refused(reply)
        self._faults.add(refused.fault)
        return refused

    def _end_of_piece(self) -> None:
        _, turn, _, sent = self._pieces.popleft()
        ended = monotonic()
        self.used = True
        faults = self._faults
        worst = resp.worst_of(faults) if faults else None
        if worst is None:
            # What came before it is not its own doing.
            self._circuit.leave(turn, Outcome.OK, ended - max(sent, self._ended), ended)
        else:
            self._circuit.failed(turn, worst)
        self._ended = ended
        if faults:
            self._faults = set()
            if Fault.READONLY in faults:
                self._loop.call_soon(self._owner.demoted, context=self._context)  # after what else has come

    # The time

    def _wake_in(self, seconds: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings = now + seconds
        self._timer = self._loop.call_later(seconds, self._ring, context=self._context)

    def _ring(self) -> None:
        """The oldest piece may be overdue. In a busy loop, the timer comes first even if the answer is there."""
        self._timer = None
        if not self._pieces or self.over:
            return
        now, begun = monotonic(), self._pieces[0][2]
        left = max(begun, self._patient_since) + self._timeout - now
        if left > 0:
            self._wake_in(left, now)
        elif begun >= self._patient_since and now - self._rings > self._timeout * LATE:
            self._patient_since = now
            self._wake_in(self._timeout, now)
        else:
            self._break(TimeoutError(f"no reply within {self._timeout:g} s"))

    # The end

    def connection_lost(self, exc: Exception | None) -> None:
        if self.over:
            return
        if exc is None:
            self._break(self._found.lost("Connection closed by server."))
        elif isinstance(exc, OSError):
            error = self._found.lost(f"Error on the socket: {exc}")
            error.__cause__ = exc
            self._break(error)
        else:
            self._break(exc)

    def _break(self, error: Exception) -> None:
        if not self.over:
            self._owner.lost(self, error)

    def end(self) -> tuple[list[Ask], list[Piece]]:
        """Use the connection no more, from any callback or task; what was not answered, and in which pieces."""
        self.over = True
        left = [*self._asked, *self._unsent]
        pieces = list(self._pieces)
        self._asked.clear()
        self._pieces.clear()
        self._unsent = []
        self._readings.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport.abort()
        return left, pieces


def _copy(replies: list[Reply]) -> list[Reply]:
    return [reply[:] if type(reply) is list else reply for reply in replies]
