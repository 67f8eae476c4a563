"""The filter of a process without Redis."""

from __future__ import annotations

import math
from collections import deque
from contextlib import aclosing

from ...ports import Runtime
from .bits import Layers, Mirror
from .items import ITEMS_PER_BREATH, Items, Texts, batches_of
from .layout import Shape
from .stored import LOG_LENGTH


class Alone:
    """The filter of a process without Redis. All but `gather` are called with the tier's lock held."""

    __slots__ = ("_first", "_rebuild", "_recent", "_side", "mirror")

    def __init__(self, first: Shape) -> None:
        self._first = first
        self.mirror: Mirror = Mirror("", Layers((first,)))
        self._recent: deque[str] = deque(maxlen=LOG_LENGTH)
        self._side: Texts = []
        self._rebuild: object = None

    def add(self, texts: Texts) -> None:
        """Put *texts* into the filter, and into the one that is being built, if there is one."""
        for text in texts:
            self.mirror.layers.add(text)
        self._recent.extend(texts)
        if self._rebuild is not None:
            self._side.extend(texts)

    def complete(self) -> None:
        """Trust the filter from now on."""
        self.mirror.until = math.inf

    def begin(self) -> object:
        """Begin a rebuild: what is added from now on goes into the new filter, too."""
        self._rebuild, self._side = object(), list(self._recent)
        return self._rebuild

    async def gather(self, runtime: Runtime, items: Items) -> Layers:
        """A new filter's bits."""
        layers = Layers((self._first,))
        async with aclosing(batches_of(items, ITEMS_PER_BREATH)) as batches:
            async for texts in batches:
                for text in texts:
                    layers.add(text)
                await runtime.sleep(0)
        return layers

    def switch(self, rebuild: object, layers: Layers) -> bool:
        """Put *layers* in the place of the old filter's; False if another rebuild began since."""
        if rebuild is not self._rebuild:
            return False
        for text in self._side:
            layers.add(text)
        self._rebuild, self._side = None, []
        self.mirror = Mirror("", layers)
        self.complete()
        return True
