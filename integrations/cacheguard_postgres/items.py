"""Keys in events → the items of Bloom filters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any, TypeAlias, cast
from urllib.parse import unquote

from cacheguard import BloomFilter, Change
from cacheguard.errors import ConfigurationError

Fed: TypeAlias = tuple[BloomFilter, str, str]  # with what stands before and after the item


def fed(given: Any) -> tuple[Fed, ...]:
    """Check the option ``bloom`` of a feed."""
    if given is None:
        return ()
    if not isinstance(given, Mapping) or not all(isinstance(each, BloomFilter) for each in cast("Any", given)):
        raise ConfigurationError(f"bloom must be a mapping of filters to key templates, got {given!r}")
    return tuple((bloom, *_around(text)) for bloom, text in cast("Mapping[BloomFilter, Any]", given).items())


def _around(template: Any) -> tuple[str, str]:
    """What stands before and after the one field of *template*."""
    try:
        parts = list(Formatter().parse(template)) if isinstance(template, str) else []
    except ValueError:
        parts = []
    # Literals with braces in them come in several parts.
    at = [index for index, (_, field, _, _) in enumerate(parts) if field is not None]
    if len(at) != 1 or parts[at[0]][2] or parts[at[0]][3]:
        raise ConfigurationError(
            f"bloom must have key templates with one plain field, like 'user:{{id}}', got {template!r}"
        )
    literals = [literal for literal, _, _, _ in parts]
    return "".join(literals[: at[0] + 1]), "".join(literals[at[0] + 1 :])


def brought(filters: Iterable[Fed], changes: Iterable[Change]) -> list[tuple[BloomFilter, list[str]]]:
    """The items that *changes* bring, for each filter that gets any."""
    keys = [change.key for change in changes if change.key is not None]
    found = [(bloom, [item for key in keys if (item := _item(key, *around))]) for bloom, *around in filters]
    return [(bloom, items) for bloom, items in found if items]


def _item(key: str, before: str, after: str) -> str:
    if not (key.startswith(before) and key.endswith(after) and len(key) > len(before) + len(after)):
        return ""
    text = key[len(before) : len(key) - len(after)]
    return "" if ":" in text else unquote(text)  # a value has no colon: it is escaped
