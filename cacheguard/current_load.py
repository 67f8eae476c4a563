"""A loader's access to its own load."""

from __future__ import annotations

from contextvars import ContextVar

from .checks import check_tag


class Load:
    """The load that runs now; `current_load` returns it to the loader.

    Args:
        primary: True if the previous load returned a value older than the newest known version of the row, so the
            replica lags behind. If it can, the loader should read from the primary this time.

    A loader may set, before it returns:

    - ``cacheable = False``: all callers that wait for this load get the value; no tier stores it.
    - ``private = True``: only the caller that loads gets the value; no tier stores it, and waiters load for themselves.

    ``stored`` is True once a tier has taken the value. The loader has returned by then: to know, keep the load.
    ``over`` is True once the loader has returned or raised.
    """

    __slots__ = ("asked_for", "cacheable", "over", "primary", "private", "stored", "tags")

    def __init__(self, *, primary: bool = False) -> None:
        self.primary: bool = primary
        self.cacheable: bool = True
        self.private: bool = False
        self.stored: bool = False
        self.over: bool = False
        self.tags: dict[str, None] = {}
        self.asked_for: bool = False  # a loader that never calls current_load would return the same again

    def __repr__(self) -> str:
        return f"<Load, tags {list(self.tags)}, primary={self.primary}>"

    @property
    def kept(self) -> bool:
        """True if a tier may store the value."""
        return self.cacheable and not self.private

    def add_tags(self, *tags: str) -> None:
        """Add tags to the entry that is being loaded.

        Each tag is text, as `invalidate_tags` takes it. The first time that a process uses a tag here, the fill costs
        one more round trip. Raises `TypeError` or `ValueError` if a tag is not text or is empty.
        """
        for tag in tags:
            check_tag(tag)
        self.tags.update(dict.fromkeys(tags))


CURRENT: ContextVar[Load | None] = ContextVar("cacheguard_current_load", default=None)


def current_load() -> Load:
    """Return the load that the caller is part of; outside of a load, a `Load` without effect."""
    load = CURRENT.get()
    if load is None:
        return Load()
    load.asked_for = True
    return load
