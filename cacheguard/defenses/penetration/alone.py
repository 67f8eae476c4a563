"""The filter of a process without Redis."""

from __future__ import annotations

import math
from collections import deque
from contextlib import AbstractContextManager, aclosing
from typing import Any

from ...ports import Runtime
from .bits import Layers, Mirror
from .info import BloomInfo, State, info_of
from .items import ITEMS_PER_BREATH, Made, Texts, batches_of, made
from .layout import Shape
from .rebuild import Begin
from .stored import LOG_LENGTH, Refusal


class Alone:
    """The filter of a process without Redis; *lock* guards it."""

    __slots__ = ("_first", "_lock", "_name", "_rebuild", "_recent", "_side", "again", "mirror")

    def __init__(self, name: str, first: Shape, lock: AbstractContextManager[Any]) -> None:
        self._name, self._first, self._lock = name, first, lock
        self.mirror: Mirror = Mirror("", Layers((first,)))
        self.again: float = math.inf  # nobody can be asked
        self._recent: deque[str] = deque(maxlen=LOG_LENGTH)
        self._side: Texts = []
        self._rebuild: object = None

    def after_fork(self, lock: AbstractContextManager[Any]) -> None:
        """Take the child's lock; what a thread of the parent was building is not built here."""
        self._lock, self._rebuild, self._side = lock, None, []

    def rest(self, runtime: Runtime, seconds: float) -> None:
        """Nothing to rest from."""

    async def confirm(self, runtime: Runtime) -> Mirror | None:  # noqa: ARG002 - as of a shared one
        """The bits, if they are complete."""
        return self.mirror if self.mirror.until > 0 else None

    async def add(self, runtime: Runtime, texts: Texts) -> float:  # noqa: ARG002 - as above
        """Put *texts* into the filter, and into the one that is being built, if there is one."""
        with self._lock:
            for text in texts:
                self.mirror.layers.add(text)
            self._recent.extend(texts)
            if self._rebuild is not None:
                self._side.extend(texts)
        return -math.inf

    async def mark_complete(self, runtime: Runtime) -> None:  # noqa: ARG002 - as above
        """Trust the filter from now on."""
        self.mirror.until = math.inf

    async def whole(self, runtime: Runtime) -> tuple[bool, str]:  # noqa: ARG002 - as above
        """Whether the filter is complete."""
        return self.mirror.until > 0, ""

    async def rebuild(self, runtime: Runtime, items: Made, begin: Begin) -> None:
        """Replace the filter by one of *items* and of everything added meanwhile."""
        with self._lock:
            if begin.silence_ms and (self._rebuild is not None or self.mirror.until > 0):
                raise Refusal(self._name, "BUSY")
            self._rebuild, self._side = mine, _ = object(), list(self._recent)
        try:
            layers = await self._gather(runtime, items)
            with self._lock:
                if mine is not self._rebuild:
                    raise Refusal(self._name, "OVERTAKEN")
                for text in self._side:
                    layers.add(text)
                mirror = Mirror("", layers)
                mirror.until = math.inf
                self.mirror = mirror
        finally:
            with self._lock:
                if mine is self._rebuild:
                    self._rebuild, self._side = None, []

    async def _gather(self, runtime: Runtime, items: Made) -> Layers:
        layers = Layers((self._first,))
        async with aclosing(batches_of(made(items), ITEMS_PER_BREATH)) as batches:
            async for texts in batches:
                for text in texts:
                    layers.add(text)
                await runtime.sleep(0)
        return layers

    async def info(self, runtime: Runtime) -> BloomInfo:  # noqa: ARG002 - as above
        """The filter as it is now."""
        mirror = self.mirror
        state: State = "complete" if mirror.until > 0 else "incomplete"
        return info_of(self._name, state, self._first, "", mirror.layers.count, mirror.layers.shapes)
