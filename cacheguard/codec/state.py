"""What an object is made of: its attributes, wherever its class keeps them, and its content as a builtin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MemberDescriptorType
from typing import Any, NamedTuple, cast

BUILTINS: tuple[type[Any], ...] = (int, float, complex, str, bytes, bytearray, tuple, list, dict, set, frozenset)

# Caches of what is different in each process; not content.
_HASHES = frozenset({"_attrs_cached_hash"})

_WRITTEN_IN_PYTHON = 1 << 9  # Py_TPFLAGS_HEAPTYPE: necessary, not sufficient
_POINTER = 8


class Anatomy(NamedTuple):
    """Where the instances of one class keep their state."""

    base: type[Any] | None
    """The builtin whose content they have."""
    slots: dict[str, Any]
    """The slots of all classes above, by name; each reads and writes one attribute."""
    hashes: tuple[str, ...]
    """Attributes that are caches: they are not copied, but must be there."""
    opaque: bool
    """A class above is written in C and is no builtin: there may be state that cannot be seen."""


def anatomy_of(kind: type[Any]) -> Anatomy:
    """Where the instances of *kind* keep their state."""
    slots: dict[str, Any] = {}
    hashes: list[str] = []
    base: type[Any] | None = None
    opaque = False
    for each in kind.__mro__[:-1]:
        if each in BUILTINS:
            base = base or each
            continue
        opaque = opaque or _hides(each)
        for name, slot in vars(each).items():
            if type(slot) is MemberDescriptorType and each.__flags__ & _WRITTEN_IN_PYTHON:
                slots.setdefault(name, slot)
                hashes += [name] if name in _HASHES and name not in hashes else []
    if not hashes:  # without slots it is in the dictionary
        code = getattr(kind.__hash__, "__code__", None)
        hashes += _HASHES.intersection(getattr(code, "co_names", ()))
    return Anatomy(base, slots, tuple(hashes), opaque)


def _hides(kind: Any) -> bool:
    """True if the instances of *kind* are larger than its slots explain, so that they hold what only C code sees."""
    declared: dict[str, Any] = {**kind.__dict__}
    own = sum(type(each) is MemberDescriptorType for each in declared.values())
    own += ("__dict__" in declared) + ("__weakref__" in declared)
    if kind.__flags__ & _WRITTEN_IN_PYTHON == 0:
        own = 0
    above = kind.__base__
    return bool(kind.__basicsize__ - above.__basicsize__ > own * _POINTER or kind.__itemsize__ != above.__itemsize__)


def attributes_of(value: Any, anatomy: Anatomy) -> dict[str, Any]:
    """All attributes that *value* has of its own, by name."""
    held: Any = getattr(value, "__dict__", None)
    found: dict[str, Any] = cast("dict[str, Any]", held) if type(held) is dict else {}
    if anatomy.hashes and not _HASHES.isdisjoint(found):
        found = {name: each for name, each in found.items() if name not in _HASHES}
    return {**dict(_filled(value, anatomy)), **found} if anatomy.slots else found


def _filled(value: Any, anatomy: Anatomy) -> Iterator[tuple[str, Any]]:
    """The names and values of the slots of *value* that are filled."""
    for name, slot in anatomy.slots.items():
        if name in _HASHES:
            continue
        try:
            yield name, slot.__get__(value)
        except AttributeError:
            continue


def _through(base: type[Any], method: str = "__iter__") -> Callable[[Any], Any]:
    """Makes a *base* of what its own *method* gives, whatever the subclass has in its place."""
    read: Callable[[Any], Any] = vars(base)[method]
    return lambda value: base(read(value))


CONTENT: dict[type[Any], Callable[[Any], Any]] = {
    int: int.__index__,
    float: lambda value: float.__add__(value, -0.0),
    complex: lambda value: complex(float(value.real), float(value.imag)),
    str: lambda value: "".join(str.__iter__(value)),
    dict: _through(dict, "items"),
    **{kind: _through(kind) for kind in (bytes, bytearray, tuple, list, set, frozenset)},
}
"""The content of an instance of a subclass, as the builtin itself."""
