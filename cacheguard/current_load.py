"""What a loader may set and ask about its own load."""

from __future__ import annotations

from contextvars import ContextVar

from .checks import check_tag


class Load:
    """The load that runs now; `current_load` hands it to the loader.

    Args:
        primary: an answer loaded just now was older than the newest known version of the row: a replica lags behind. A
            loader that can should read from the primary this time.

    A loader may set, before it returns:

    - ``cacheable = False``: all callers that wait for this load get the answer; no tier keeps it.
    - ``private = True``: only the caller that loads gets the answer; no tier keeps it, and waiters load for themselves.
    """

    __slots__ = ("asked_for", "cacheable", "primary", "private", "tags")

    def __init__(self, *, primary: bool = False) -> None:
        self.primary: bool = primary
        self.cacheable: bool = True
        self.private: bool = False
        self.tags: dict[str, None] = {}
        self.asked_for: bool = False  # a loader that never asks would answer the same once more

    def __repr__(self) -> str:
        return f"<Load, tags {list(self.tags)}, primary={self.primary}>"

    @property
    def kept(self) -> bool:
        """Whether a tier may keep the answer."""
        return self.cacheable and not self.private

    def add_tags(self, *tags: str) -> None:
        """Tag the entry that is being loaded, beside the tags it has already.

        Each tag is text, as `invalidate_tags` takes it. The first time that a process sees a tag here, the fill costs
        one round trip more. Raises `TypeError` or `ValueError` for what is no tag.
        """
        for tag in tags:
            check_tag(tag)
        self.tags.update(dict.fromkeys(tags))


CURRENT: ContextVar[Load | None] = ContextVar("cacheguard_current_load", default=None)


def current_load() -> Load:
    """The load that the caller is part of; outside of a load, a `Load` that has no effect."""
    load = CURRENT.get()
    if load is None:
        return Load()
    load.asked_for = True
    return load
