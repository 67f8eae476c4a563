"""The changes that a change feed reports, in the form that `CacheGuard.apply` takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..checks import check_key, check_tag
from ..defenses.consistency import Version, version_text
from ..delivery.outbox import Invalidation
from ..errors import ConfigurationError
from ..protocol.names import Scope


@dataclass(frozen=True, slots=True)
class Change:
    """One changed row, as a consumer of the database's log reads it.

    Args:
        key: the key text of its entry; or
        tag: a tag of all entries that contain the row.
        version: the row's current version (a whole number, an aware datetime, a PostgreSQL log position); of two events
            for one key, the one with the larger version is newer. None: every event counts as new.

    Raises:
        ConfigurationError: neither or both of key and tag are given, or the version is invalid.
    """

    key: str | None = None
    tag: str | None = None
    version: Version | None = None

    def __post_init__(self) -> None:
        if (self.key is None) == (self.tag is None):
            raise ConfigurationError(f"a change has a key or a tag, got key={self.key!r} and tag={self.tag!r}")
        try:
            if self.tag is None:
                check_key(self.key)
            else:
                check_tag(self.tag)
            version_text(self.version)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(str(error)) from error


class Latest:
    """The invalidations for some changes: each key once, with the largest of its versions."""

    def __init__(self, scope: Scope, lag_ms: int) -> None:
        self._scope, self._lag_ms = scope, lag_ms
        self._versions: dict[str, str] = {}

    def add(self, changes: Iterable[Any]) -> None:
        """Take in *changes*; each is a `Change`, or a pair of key and version."""
        scope, versions = self._scope, self._versions
        for each in changes:
            change = each if isinstance(each, Change) else _of_pair(each)
            name = scope.key(change.key) if change.key is not None else scope.tag(change.tag or "")
            version = "" if change.key is None else version_text(change.version)
            versions[name] = max(versions.get(name, ""), version)

    def items(self) -> Iterator[Invalidation]:
        """The invalidations, each made when it is asked for."""
        return (Invalidation(name, self._lag_ms, version) for name, version in self._versions.items())

    def __len__(self) -> int:
        return len(self._versions)


def _of_pair(pair: Any) -> Change:
    try:
        key, version = pair
    except (TypeError, ValueError):
        raise ConfigurationError(f"a change is a Change or a pair (key, version), got {pair!r}") from None
    return Change(key, version=version)
