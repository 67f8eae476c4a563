"""A filter is built anew beside the one that answers, and takes its place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ...checks import number_of
from ...errors import ConfigurationError, Unreachable
from ...ports import Command, Reply, Runtime
from .adding import Plan
from .bits import Layers, Mirror
from .items import ITEMS_PER_BREATH, Made, Texts, batches_of, made
from .layout import Shape, chunk_and_bit, chunks_of, describe, parse, probe
from .signatures import Base, is_signed, texts_of
from .stored import (
    ABORT,
    ALIVE,
    BEGIN,
    CHUNKS_PER_SEND,
    LOG_LENGTH,
    SWITCH,
    Keys,
    Refusal,
    header_of,
    new_epoch,
    text_of,
)

REBUILD_ALLOWANCE = 3600.0  # seconds of silence after which a rebuild counts as dead
REBUILD_SIGN = 60.0  # seconds between its signs of life while it has nothing else to do
BEAT = 2.0  # seconds between those it gives while the rows are read
SILENCE = 10.0  # seconds without any, after which `ensure` takes over

ALLOWANCE_MS = int(REBUILD_ALLOWANCE * 1000)
_COMMANDS_PER_SEND = 512


@dataclass(frozen=True, slots=True)
class Begin:
    """When a rebuild may begin.

    Args:
        lag_ms: time between an add and the commit of its row.
        silence_ms: a rebuild that was heard of within this time is left alone; 0: take over any.
        epoch: the epoch that the filter must have, empty for none; "-" for any.
    """

    lag_ms: int = 0
    silence_ms: int = 0
    epoch: str = "-"


class Rebuild:
    """One rebuild in Redis, from its beginning to its switch."""

    def __init__(self, keys: Keys, first: Shape, lease: int, runtime: Runtime) -> None:
        self._keys, self._first, self._lease, self._runtime = keys, first, lease, runtime
        self._epoch = new_epoch(runtime)
        self._layers = Layers((first,))
        self._uploaded = 0  # layers whose chunks are in Redis
        self._taken = 0  # items taken over from those who added meanwhile
        self._heard = runtime.now()
        self._mixed = False  # what is taken over may be signed, or not

    async def run(self, items: Made, begin: Begin) -> Mirror:
        """Build, upload, switch; returns the mirror of the new filter."""
        pause, replaced = await self._begin(begin)
        try:
            await self._pause(pause)
            await self._gather(items)
            while await self._follow():
                pass
            seq, *old = await self._switch()
        except Exception:
            with suppress(Unreachable):
                await self._runtime.commands.send(ABORT(self._keys.meta, self._keys.side)(self._epoch))
            raise
        await self._keep()
        for epoch, layers in [*replaced, old]:
            with suppress(Unreachable, ValueError):  # then the next rebuild does it, or nobody can tell what is there
                await self._discard(epoch, layers)
        return self._mirror(seq)

    def _mirror(self, seq: int) -> Mirror:
        return Mirror(self._epoch, self._layers, (seq, b""))

    async def _begin(self, begin: Begin) -> tuple[float, list[list[str]]]:
        """Seconds to wait before the rows are read, and what earlier rebuilds left behind."""
        (reply,) = await self._runtime.commands.send(
            BEGIN(self._keys.meta, self._keys.log, self._keys.side)(
                self._epoch,
                ALLOWANCE_MS,
                begin.lag_ms,
                LOG_LENGTH,
                *self._missing(),
                self._lease,
                begin.silence_ms,
                begin.epoch,
            )
        )
        if text_of(reply[0]) != "OK":
            raise Refusal(self._keys.name, text_of(reply[0]))
        _, wait, server, epoch, layers, seq, kept, *rest = reply
        self._note_old(text_of(server), text_of(epoch), text_of(layers), whole=seq == kept, kept=kept)
        old = [text_of(part) for part in rest]
        pause = (wait + 1) / 1000 if wait else 0.0
        if is_signed(text_of(layers)):  # nobody has told Redis what its log has let go of: as if that were all
            pause = max(pause, begin.lag_ms / 1000, self._lease / 1000)
        return pause, [old[start : start + 2] for start in range(0, len(old), 2)]

    def _missing(self) -> tuple[str | int, ...]:
        """The filter that is made if there is none: epoch, layers, probe, room, chunks."""
        plan = Plan.new(self._runtime, self._first)
        return plan.epoch, plan.layers, plan.probe, self._first.capacity, self._first.chunks

    def _note_old(self, server: str, epoch: str, layers: str, *, whole: bool, kept: int) -> None:  # noqa: ARG002 - for the signed one
        """Look at the filter to be replaced; *kept* items come along, *whole* if these are all it has logged."""
        self._mixed = is_signed(layers)

    async def _pause(self, seconds: float) -> None:
        while seconds > 0:
            await self._runtime.sleep(min(seconds, REBUILD_SIGN))
            seconds -= REBUILD_SIGN
            await self._follow()

    async def _gather(self, items: Made) -> None:
        # A sign of life from beside: the rows may come slowly.
        watch = self._runtime.watch(self._live, BEAT, _nothing, None)
        try:
            async with aclosing(batches_of(made(items), ITEMS_PER_BREATH)) as batches:
                async for texts in batches:
                    for text in texts:
                        self._layers.add(text)
                    if self._runtime.now() - self._heard >= REBUILD_SIGN:
                        await self._follow()
                    await self._runtime.sleep(0)
        finally:
            watch.stop()

    async def _live(self) -> None:
        with suppress(Unreachable):
            await self._runtime.commands.send(ALIVE(self._keys.meta)(self._epoch, ALLOWANCE_MS))

    async def _follow(self) -> bool:
        """Take over what others added; false if that was nothing."""
        _, entries = await self._step()
        await self._take_over(entries)
        return bool(entries)

    async def _switch(self) -> tuple[int, str, str]:
        while True:
            # In Redis before the switch, not with it: whoever loads the new filter must find every bit.
            await self._upload()
            outcome, *rest = await self._step(*self._described())
            if outcome == "SWITCHED":
                return rest[0], text_of(rest[1]), text_of(rest[2])
            await self._take_over(rest[0])

    def _described(self) -> tuple[str | int, ...]:
        """What the switch is told of the new filter."""
        shapes, layers = self._layers.shapes, self._layers
        last = shapes[-1].capacity
        return describe(shapes), probe(shapes[0]), layers.count, layers.filled, last, chunks_of(shapes), 1

    async def _step(self, *switch: str | int) -> list[Any]:
        (reply,) = await self._runtime.commands.send(
            SWITCH(self._keys.meta, self._keys.log, self._keys.side, *self._more_keys())(
                self._epoch, ALLOWANCE_MS, self._taken, ITEMS_PER_BREATH, *switch
            )
        )
        self._heard = self._runtime.now()
        outcome = text_of(reply[0])
        if outcome not in ("BEHIND", "SWITCHED"):
            raise Refusal(self._keys.name, outcome)
        return [outcome, *reply[1:]]

    def _more_keys(self) -> tuple[str, ...]:
        return ()

    async def _take_over(self, entries: list[Reply]) -> None:
        bits: list[Command] = []
        for text in (text for entry in entries for text in self._texts(entry)):
            for position in self._layers.add(text):
                layer = len(self._layers.shapes) - 1
                if layer < self._uploaded:
                    chunk, bit = chunk_and_bit(position)
                    bits.append(("SETBIT", self._keys.chunk(self._epoch, layer, chunk), bit, 1))
        await self._send_in_parts(bits, _COMMANDS_PER_SEND)
        self._taken += len(entries)

    def _texts(self, entry: Reply) -> Texts:
        return texts_of(bytes(entry)) if self._mixed else [text_of(entry)]

    async def _upload(self) -> None:
        header = header_of(self._epoch)
        for layer in range(self._uploaded, len(self._layers.shapes)):
            await self._store(
                (self._keys.chunk(self._epoch, layer, number), header + self._layers.chunk(layer, number))
                for number in range(self._layers.shapes[layer].chunks)
            )
            self._uploaded = layer + 1

    async def _store(self, chunks: Iterable[tuple[str, bytes]], size: int = CHUNKS_PER_SEND) -> None:
        """Put chunks into Redis, until the switch only for a while."""
        await self._send_in_parts((("SET", key, chunk, "PX", 2 * ALLOWANCE_MS) for key, chunk in chunks), size)

    async def _keep(self) -> None:
        every = chunk_keys(self._keys, self._epoch, str(self._described()[0]))
        await self._send_in_parts((("PERSIST", key) for key in every), _COMMANDS_PER_SEND)

    async def _discard(self, epoch: str, layers: str) -> None:
        """Remove a replaced filter's chunks, a few at a time."""
        every = chunk_keys(self._keys, epoch, layers)
        await self._send_in_parts((("UNLINK", key) for key in every), _COMMANDS_PER_SEND)
        await self._runtime.commands.send(("HDEL", self._keys.meta, f"old:{epoch}"))

    async def _send_in_parts(self, commands: Iterable[Command], size: int) -> None:
        every = iter(commands)
        while part := list(islice(every, size)):
            await self._runtime.commands.send(*part)


def chunk_keys(keys: Keys, epoch: str, layers: str) -> Iterator[str]:
    """The keys of a filter's chunks. Raises ``ValueError`` if *layers* says nothing of them."""
    places: Iterable[tuple[int, int]]
    if is_signed(layers):
        places = Base.parse(layers).chunks
    else:
        places = [(layer, number) for layer, number, _ in keys.chunks(epoch, parse(layers))]
    for layer, number in places:
        yield keys.chunk(epoch, layer, number)


async def _nothing() -> None:
    """There is no end to be late for."""


def checked_lag(seconds: object) -> int:
    """A time to settle in whole milliseconds."""
    if not 0 <= number_of(seconds) <= REBUILD_ALLOWANCE:
        raise ConfigurationError(f"settle must be seconds from 0 to {REBUILD_ALLOWANCE:.0f}, got {seconds!r}")
    return math.ceil(number_of(seconds) * 1000)
