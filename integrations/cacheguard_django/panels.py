"""A panel for django-debug-toolbar: ``DEBUG_TOOLBAR_PANELS = [..., "cacheguard_django.panels.CacheGuardPanel"]``."""

# pyright: reportIncompatibleMethodOverride=false, reportAssignmentType=false, reportUnknownMemberType=false
# The toolbar has no types, and takes plain attributes where its own class has properties.

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

from debug_toolbar.panels import Panel
from django.conf import settings
from django.core.cache import caches

from cacheguard import Stats

from .backend import CacheGuardCache
from .recording import Record, start

COUNTERS = tuple(
    name
    for name in (
        "l1_hits",
        "l2_hits",
        "null_hits",
        "stale_hits",
        "misses",
        "loads",
        "shared",
        "waits",
        "fills",
        "fills_refused",
        "invalidations",
    )
    if name in {field.name for field in fields(Stats)}
)


class CacheGuardPanel(Panel):
    """Shows the cache calls of a request, and what the guards did meanwhile."""

    title = "cacheguard"
    template = "cacheguard_django/panel.html"
    is_async = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._records: list[Record] = []
        self._before: dict[str, Stats] = {}

    @property
    def nav_subtitle(self) -> str:
        found = cast("dict[str, Any]", self.get_stats())  # type: ignore[no-untyped-call]  # the toolbar has no types
        calls = cast("list[dict[str, Any]]", found.get("calls", []))
        number, total = len(calls), sum(float(call["ms"]) for call in calls)
        return f"{number} call{'' if number == 1 else 's'} in {total:.2f} ms"

    def enable_instrumentation(self) -> None:
        self._records = []
        self._before = {alias: cache.guard.stats() for alias, cache in _ours().items()}
        start(self._records)

    def disable_instrumentation(self) -> None:
        start(None)

    def generate_stats(self, request: Any, response: Any) -> None:  # noqa: ARG002 - what the toolbar passes
        guards = [
            {"alias": alias, "counts": _difference(self._before[alias], cache.guard.stats())}
            for alias, cache in _ours().items()
            if alias in self._before
        ]
        calls = [
            {"name": each.name, "key": each.key, "ms": each.seconds * 1000, "outcome": each.outcome}
            for each in self._records
        ]
        found = {"calls": calls, "guards": guards, "counters": list(COUNTERS)}
        self.record_stats(found)  # type: ignore[no-untyped-call]  # the toolbar has no types


def _ours() -> dict[str, CacheGuardCache]:
    return {alias: cache for alias in settings.CACHES if isinstance(cache := caches[alias], CacheGuardCache)}


def _difference(before: Stats, after: Stats) -> list[int]:
    return [getattr(after, name) - getattr(before, name) for name in COUNTERS]
