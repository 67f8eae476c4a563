"""Entries of L1 as tests make them: of one moment, and with no other."""

from __future__ import annotations

from typing import Any

from cacheguard.tiers.held import Entry, Shelving


def entry(value: Any = 1, *, until: float = 9.0, keyed: bool = False, **options: Any) -> Entry:
    """An entry of *value* that ends at *until*."""
    return Shelving(keyed=keyed).entry(value, now=until, kept_until=until, fresh_until=until, born=0.0, **options)
