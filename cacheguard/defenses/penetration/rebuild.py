"""A filter is built anew beside the one that answers, and takes its place."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import aclosing, suppress
from itertools import islice
from typing import Any

from ...checks import number_of
from ...errors import ConfigurationError, Unreachable
from ...ports import Command, Reply, Runtime
from .adding import Plan
from .bits import Layers, Mirror
from .items import ITEMS_PER_BREATH, Items, batches_of
from .layout import Shape, chunk_and_bit, chunks_of, describe, parse, probe
from .stored import ABORT, BEGIN, CHUNKS_PER_SEND, LOG_LENGTH, SWITCH, Keys, header_of, new_epoch, refusal, text_of

REBUILD_ALLOWANCE = 3600.0  # seconds of silence after which a rebuild counts as dead
REBUILD_SIGN = 60.0  # seconds between its signs of life

_ALLOWANCE_MS = int(REBUILD_ALLOWANCE * 1000)
_COMMANDS_PER_SEND = 512


class Rebuild:
    """One rebuild in Redis, from its beginning to its switch."""

    def __init__(self, keys: Keys, first: Shape, lease: int, runtime: Runtime) -> None:
        self._keys, self._first, self._lease, self._runtime = keys, first, lease, runtime
        self._epoch = new_epoch(runtime)
        self._layers = Layers((first,))
        self._uploaded = 0  # layers whose chunks are in Redis
        self._taken = 0  # items taken over from those who added meanwhile
        self._heard = runtime.now()

    async def run(self, items: Items, lag_ms: int) -> Mirror:
        """Build, upload, switch; returns the mirror of the new filter."""
        pause, replaced = await self._begin(lag_ms)
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
        return Mirror(self._epoch, self._layers, seq)

    async def _begin(self, lag_ms: int) -> tuple[float, list[list[str]]]:
        """Seconds to wait before the rows are read, and what earlier rebuilds left behind."""
        plan = Plan.new(self._runtime, self._first)
        (reply,) = await self._runtime.commands.send(
            BEGIN(self._keys.meta, self._keys.log, self._keys.side)(
                self._epoch,
                _ALLOWANCE_MS,
                lag_ms,
                LOG_LENGTH,
                plan.epoch,
                plan.layers,
                plan.probe,
                self._first.capacity,
                self._first.chunks,
                self._lease,
            )
        )
        if text_of(reply[0]) != "OK":
            raise refusal(self._keys.name, text_of(reply[0]))
        old = [text_of(part) for part in reply[2:]]
        pause = (reply[1] + 1) / 1000 if reply[1] else 0.0
        return pause, [old[start : start + 2] for start in range(0, len(old), 2)]

    async def _pause(self, seconds: float) -> None:
        while seconds > 0:
            await self._runtime.sleep(min(seconds, REBUILD_SIGN))
            seconds -= REBUILD_SIGN
            await self._follow()

    async def _gather(self, items: Items) -> None:
        async with aclosing(batches_of(items, ITEMS_PER_BREATH)) as batches:
            async for texts in batches:
                for text in texts:
                    self._layers.add(text)
                if self._runtime.now() - self._heard >= REBUILD_SIGN:
                    await self._follow()
                await self._runtime.sleep(0)

    async def _follow(self) -> bool:
        """Take over what others added; false if that was nothing."""
        _, texts = await self._step()
        await self._take_over(texts)
        return bool(texts)

    async def _switch(self) -> tuple[int, str, str]:
        while True:
            # In Redis before the switch, not with it: whoever loads the new filter must find every bit.
            await self._upload()
            shapes = self._layers.shapes
            outcome, *rest = await self._step(
                describe(shapes),
                probe(shapes[0]),
                self._layers.count,
                self._layers.filled,
                shapes[-1].capacity,
                chunks_of(shapes),
            )
            if outcome == "SWITCHED":
                return rest[0], text_of(rest[1]), text_of(rest[2])
            await self._take_over(rest[0])

    async def _step(self, *switch: str | int) -> list[Any]:
        (reply,) = await self._runtime.commands.send(
            SWITCH(self._keys.meta, self._keys.log, self._keys.side)(
                self._epoch, _ALLOWANCE_MS, self._taken, ITEMS_PER_BREATH, *switch
            )
        )
        self._heard = self._runtime.now()
        outcome = text_of(reply[0])
        if outcome not in ("BEHIND", "SWITCHED"):
            raise refusal(self._keys.name, outcome)
        return [outcome, *reply[1:]]

    async def _take_over(self, texts: list[Reply]) -> None:
        bits: list[Command] = []
        for text in texts:
            for position in self._layers.add(text_of(text)):
                layer = len(self._layers.shapes) - 1
                if layer < self._uploaded:
                    chunk, bit = chunk_and_bit(position)
                    bits.append(("SETBIT", self._keys.chunk(self._epoch, layer, chunk), bit, 1))
        await self._send_in_parts(bits, _COMMANDS_PER_SEND)
        self._taken += len(texts)

    async def _upload(self) -> None:
        header, lifetime = header_of(self._epoch), 2 * _ALLOWANCE_MS
        for layer in range(self._uploaded, len(self._layers.shapes)):
            await self._send_in_parts(
                (
                    (
                        "SET",
                        self._keys.chunk(self._epoch, layer, number),
                        header + self._layers.chunk(layer, number),
                        "PX",
                        lifetime,
                    )
                    for number in range(self._layers.shapes[layer].chunks)
                ),
                CHUNKS_PER_SEND,
            )
            self._uploaded = layer + 1

    async def _keep(self) -> None:
        every = self._keys.chunks(self._epoch, self._layers.shapes)
        await self._send_in_parts((("PERSIST", key) for _, _, key in every), _COMMANDS_PER_SEND)

    async def _discard(self, epoch: str, layers: str) -> None:
        """Remove a replaced filter's chunks, a few at a time."""
        every = self._keys.chunks(epoch, parse(layers))
        await self._send_in_parts((("UNLINK", key) for _, _, key in every), _COMMANDS_PER_SEND)
        await self._runtime.commands.send(("HDEL", self._keys.meta, f"old:{epoch}"))

    async def _send_in_parts(self, commands: Iterable[Command], size: int) -> None:
        every = iter(commands)
        while part := list(islice(every, size)):
            await self._runtime.commands.send(*part)


def checked_lag(seconds: object) -> int:
    """A time to settle in whole milliseconds."""
    if not 0 <= number_of(seconds) <= REBUILD_ALLOWANCE:
        raise ConfigurationError(f"settle must be seconds from 0 to {REBUILD_ALLOWANCE:.0f}, got {seconds!r}")
    return math.ceil(number_of(seconds) * 1000)
