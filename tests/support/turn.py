"""A signal without a runtime, for tests of what waits for one."""

from __future__ import annotations


class Turn:
    """A signal whose wait ends at once."""

    def __init__(self, ends: BaseException | None = None) -> None:
        self.up = False
        self._ends = ends

    def set(self) -> None:
        self.up = True

    async def wait(self, timeout: float | None) -> bool:
        if self._ends is not None:
            raise self._ends
        return self.up
