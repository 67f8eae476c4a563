"""Reads notifications: JSON → `Change`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cacheguard import Change
from cacheguard.errors import ConfigurationError


@dataclass(slots=True)
class Heard:
    """The content of one or several notifications.

    Args:
        changes: the changes to apply to the guard.
        garbage: what could not be read, as texts for the log. A key with an invalid version is listed here, and also in
            `changes` without the version, so that it is invalidated in any case.
        gap: True if a notification reports that others are missing (``{"gap": true}``).
    """

    changes: list[Change] = field(default_factory=list[Change])
    garbage: list[str] = field(default_factory=list[str])
    gap: bool = False

    def take(self, payload: str) -> None:
        """Read one payload: an event, or an array of them."""
        try:
            said: Any = json.loads(payload)
        except (ValueError, RecursionError):
            self._discard(payload)
            return
        events: list[Any] = said if isinstance(said, list) else [said]  # pyright: ignore[reportUnknownVariableType]
        for event in events:
            self._take_event(event)

    def _take_event(self, event: Any) -> None:
        if not isinstance(event, dict):
            self._discard(event)
            return
        members: dict[str, Any] = event  # pyright: ignore[reportUnknownVariableType]
        if members.get("gap") is True:
            self.gap = True
            return
        key, tag, version = members.get("key"), members.get("tag"), members.get("version")
        try:
            change = Change(key=key, tag=tag)
        except ConfigurationError:
            self._discard(members)
            return
        if key is not None and version is not None:
            try:
                change = Change(key=key, version=_read_version(version))
            except ConfigurationError:
                self._discard(members)
        self.changes.append(change)

    def _discard(self, what: Any) -> None:
        self.garbage.append(f"{what!r:.200}")


def _read_version(version: Any) -> Any:
    """Read a version from JSON, where times are ISO texts."""
    if isinstance(version, str) and "-" in version:
        try:
            return datetime.fromisoformat(version)
        except ValueError:
            return version
    return version
