"""Which functions have which keys: two that share their keys by mistake, and one that is merely made again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import CodeType
from typing import Any

from ..errors import KeyTemplateError
from .identity import Leaf, code_of, leaves_of, same_leaves

_MOST = 10_000


class Owner:
    """A function that has certain keys.

    Args:
        fn: the function.
        by: its decorator: functions that one decorator object decorates share their keys on purpose.
    """

    def __init__(self, fn: Callable[..., Any], by: object = None) -> None:
        self.name: str = f"{fn.__module__}:{getattr(fn, '__qualname__', repr(fn))}"
        self.code: CodeType | None = code_of(fn)
        self.closure: tuple[Leaf, ...] = leaves_of(fn)
        self.by: object = by
        self.is_told: bool = False

    @property
    def is_closure(self) -> bool:
        """Does it use anything that may be another in a function of the same code?"""
        return any(leaf.text is None for leaf in self.closure)

    def is_twice(self, other: Owner) -> bool:
        """Is this the same code with other variables? If its module is loaded again, the code is another."""
        return self.code is other.code and not same_leaves(self.closure, other.closure)


class Owners:
    """The functions of one guard and its namespaces, by namespace and key."""

    def __init__(self, lock: AbstractContextManager[Any]) -> None:
        self.closures: bool = False
        """Whether a function without a template may use variables of the function around it, if it is made once."""
        self._lock = lock
        self._owners: dict[tuple[str, str], dict[str, Owner]] = {}
        self._classes: dict[str, type] = {}

    def claim(self, prefix: str, pattern: str, new: Owner, *, templated: bool) -> str | None:
        """Note that *new* has the keys *pattern* in the namespace *prefix*; return a warning if another one has them.

        Args:
            prefix: the prefix of the namespace's keys.
            pattern: what the keys of all its calls have in common.
            new: the function.
            templated: the keys are made by a template.

        Raises `KeyTemplateError` if there is no template, and the same code has these keys with other variables.
        """
        with self._lock:
            if len(self._owners) >= _MOST and (prefix, pattern) not in self._owners:
                return None
            owners = self._owners.setdefault((prefix, pattern), {})
            before = owners.get(new.name)
            if before is None:
                owners[new.name] = new
                other = next((each for each in owners.values() if each.by is None or each.by is not new.by), None)
                return None if other is None or other is new else _shared(new, other)
            if not before.is_twice(new):
                owners[new.name] = new
                return None
            if not templated:
                raise KeyTemplateError(_twice(new, before))
            told, before.is_told = before.is_told, True
            return None if told else _twice(new, before)

    def claim_class(self, kind: type) -> None:
        """Note the class that a key names; ``ValueError`` if another class of its name was in a key before."""
        name = f"{kind.__module__}.{kind.__qualname__}"
        with self._lock:
            known = self._classes.setdefault(name, kind) if len(self._classes) < _MOST else kind
        if known is not kind:
            raise ValueError(f"there are two classes of the name {name}, made by one function")


def _shared(new: Owner, other: Owner) -> str:
    return (
        f"{new.name} has the same key template as {other.name} in this namespace, so each may get what the other has "
        "cached; give them different templates, or decorate both with one decorator object if that is meant"
    )


def _twice(new: Owner, before: Owner) -> str:
    pairs = zip(new.closure, before.closure, strict=False)
    leaf = next((each for each, known in pairs if not same_leaves((each,), (known,))), None)
    what = "other variables" if leaf is None else f"another {leaf.where}"
    return (
        f"{new.name} is decorated again with the same key and with {what}, so each may get what the other has cached; "
        "name what differs in its key template, or give each a namespace of its own"
    )
