"""The rooms of L1: which entry goes when there are too many. Each is a cache of cachetools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from cachetools import Cache, LFUCache, RRCache

from .held import Entry

MOST_SECOND_CHANCES = 32
AHEAD = 512  # keys: a dict that loses its first entries walks over the gaps, so it is asked for many at once


class Line(Cache[str, Entry]):
    """The first in is the first out; one that *spare* is true for goes to the end of the line instead.

    A dict keeps the order in which its keys came, so it is the line: nothing else is kept for an entry. With the hits
    of an entry as *spare*, a hit moves nothing (Corbató's clock).
    """

    def __init__(self, maxsize: int, *, sized: bool, spare: Callable[[str, Entry], bool] | None = None) -> None:
        super().__init__(maxsize)
        self.held: dict[str, Entry] = {}
        self._sizes: dict[str, int] | None = {} if sized else None
        self._taken = 0
        self._spare = spare
        self._first: dict[str, None] = {}  # some keys from the beginning of the line

    @property
    def currsize(self) -> int:
        """Entries, or their bytes."""
        return len(self.held) if self._sizes is None else self._taken

    def __len__(self) -> int:
        return len(self.held)

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __contains__(self, key: object) -> bool:
        return key in self.held

    def __getitem__(self, key: str) -> Entry:
        return self.held[key]

    def __setitem__(self, key: str, entry: Entry) -> None:
        self.pop(key, None)
        while self.held and self.currsize + 1 > self.maxsize:
            self.popitem()
        self.add(key, entry, 1)

    def add(self, key: str, entry: Entry, size: int) -> None:
        """Put *entry*, of so many bytes, at the end of the line; nothing is there under its key, and there is room."""
        if self._sizes is not None:
            self._sizes[key] = size
            self._taken += size
        self.held[key] = entry

    def __delitem__(self, key: str) -> None:
        self._remove(key)

    def take(self, key: str) -> Entry:
        """Remove the entry of *key*, and return it; `KeyError` if there is none."""
        return self._remove(key)[0]

    def popitem(self) -> tuple[str, Entry]:
        """Remove the entry that is next to go; `KeyError` if there is none."""
        for _ in range(MOST_SECOND_CHANCES if self._spare is not None else 0):
            key = self._next()
            entry, size = self._remove(key)
            if self._spare is None or not self._spare(key, entry):
                return key, entry
            self.add(key, entry, size)
        key = self._next()
        return key, self._remove(key)[0]

    def clear(self) -> None:
        """Remove all entries."""
        self.held.clear()
        self._first.clear()
        self._taken = 0
        if self._sizes is not None:
            self._sizes.clear()

    def _next(self) -> str:
        if not self._first:
            self._first = dict.fromkeys(islice(self.held, AHEAD))
        for key in self._first:
            return key
        raise KeyError("there is no entry")

    def _remove(self, key: str) -> tuple[Entry, int]:
        self._first.pop(key, None)
        entry = self.held.pop(key)
        size = 1
        if self._sizes is not None:
            size = self._sizes.pop(key)
            self._taken -= size
        return entry, size


class _Beside(Cache[str, Entry]):
    """Keeps the entries of a cache of cachetools in a dict, too, where they are found without a use."""

    def __init__(self, maxsize: int, *, sized: bool) -> None:
        super().__init__(maxsize, getsizeof=self._size_of if sized else None)
        self.held: dict[str, Entry] = {}
        self._incoming = 1

    def _size_of(self, _: Entry) -> int:
        return self._incoming

    def add(self, key: str, entry: Entry, size: int) -> None:
        """Keep *entry*, of so many bytes."""
        self._incoming = size
        self[key] = entry

    def take(self, key: str) -> Entry:
        """Remove the entry of *key*, and return it; `KeyError` if there is none."""
        entry = self.held[key]
        del self[key]
        return entry

    def __setitem__(self, key: str, entry: Entry) -> None:
        super().__setitem__(key, entry)
        self.held[key] = entry

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self.held.pop(key, None)


class Frequent(_Beside, LFUCache[str, Entry]):
    """The one that was used least often goes first."""


class AnyOf(_Beside, RRCache[str, Entry]):
    """Any of them goes."""
