"""What a name in an annotation means: also classes of the enclosing function, ``Self``, names for type checkers."""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
import typing
from collections import ChainMap
from collections.abc import Callable, Mapping
from types import FrameType, SimpleNamespace
from typing import Any, cast

Names = Mapping[str, Any]

NO_NAMES: Names = {}


def hints_of(kind: type[Any], names: Names) -> dict[str, Any]:
    """The annotations of *kind* and of its bases, resolved; ``NameError`` if one has a name that is not known.

    Unlike ``typing.get_type_hints`` it knows *names* (those of the function that defines the class), and what a module
    imports for type checkers only, if that was imported by others.
    """
    hints: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        annotations = inspect.get_annotations(base)
        if annotations:
            module: dict[str, Any] = vars(sys.modules.get(base.__module__, SimpleNamespace()))
            scopes = (names, module) if "<locals>" in base.__qualname__ else (module, names)
            parameters = {each.__name__: each for each in getattr(base, "__type_params__", ())}
            known = Scopes(parameters, *scopes, dict(vars(base)), for_checkers=base.__module__)
            hints |= resolved(annotations, module, known)
    return hints


def resolved(annotations: Mapping[str, Any], outer: dict[str, Any], inner: Names) -> dict[str, Any]:
    """*annotations*, evaluated; ``NameError`` if one has a name that is not known."""
    texts = {
        name: typing.ForwardRef(each, is_argument=False, is_class=True) if isinstance(each, str) else each
        for name, each in annotations.items()
    }
    carrier = SimpleNamespace(__annotations__=texts)
    return typing.get_type_hints(carrier, outer, inner, include_extras=True)


class Scopes(ChainMap[str, Any]):
    """Several scopes, the first of which knows a name best; in the end what the module imports for type checkers."""

    def __init__(self, *scopes: Mapping[str, Any], for_checkers: str) -> None:
        super().__init__(*scopes)  # type: ignore[arg-type]  # they are only read
        self._module = for_checkers

    def __missing__(self, key: str) -> Any:
        if hasattr(builtins, key):
            raise KeyError(key)  # found there next
        return name_for_checkers(self._module, key)


def name_for_checkers(module: str, name: str) -> Any:
    """What *module* imports as *name* under ``if TYPE_CHECKING:``, if that is imported by now; else ``KeyError``."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, SyntaxError):
        raise KeyError(name) from None
    for block in ast.walk(tree):
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING"):
            for line in block.body:
                found = _imported(line, module, name)
                if found is not None:
                    return found
    raise KeyError(name)


def _imported(line: ast.stmt, module: str, name: str) -> Any:
    """What *line* would bind to *name*, or None."""
    if isinstance(line, ast.ImportFrom):
        parents = module.split(".")
        if line.level:
            is_package = hasattr(sys.modules[module], "__path__")
            parents = parents[: len(parents) - line.level + is_package]
        source = ".".join([*(parents if line.level else ()), *([line.module] if line.module else ())])
        for alias in line.names:
            if (alias.asname or alias.name) == name:
                held = vars(sys.modules.get(source, SimpleNamespace()))
                return held.get(alias.name, sys.modules.get(f"{source}.{alias.name}"))
    if isinstance(line, ast.Import):
        for alias in line.names:
            if (alias.asname or alias.name.partition(".")[0]) == name:
                return sys.modules.get(alias.name if alias.asname else name)
    return None


def names_around(fn: Callable[..., Any]) -> Names:
    """What the functions and class bodies know that are being run and in which *fn* is defined."""
    path, module = getattr(fn, "__qualname__", ""), getattr(fn, "__globals__", None)
    found: list[Mapping[str, Any]] = []
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no other way
    while frame is not None:
        inside = path.startswith((f"{frame.f_code.co_qualname}.<locals>.", f"{frame.f_code.co_qualname}."))
        if frame.f_globals is module and inside:
            found.append(frame.f_locals)
        frame = frame.f_back
    return ChainMap(*found) if found else NO_NAMES  # type: ignore[arg-type]  # only read


def closure_of(fn: Callable[..., Any]) -> dict[str, Any]:
    """The names that *fn* closes over."""
    names = getattr(getattr(fn, "__code__", None), "co_freevars", ())
    inner: dict[str, Any] = {}
    for name, cell in zip(names, getattr(fn, "__closure__", None) or (), strict=True):
        try:
            inner[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return inner


def owner_of(fn: Callable[..., Any], names: Names) -> type[Any] | None:
    """The class that *fn* is a method of, once it exists."""
    path = fn.__qualname__.rpartition(".")[0]
    local, _, path = path.rpartition("<locals>.")
    found: Any = None
    for number, part in enumerate(path.split(".")):
        if number:
            found = vars(found).get(part) if isinstance(found, type) else None
        else:
            found = names.get(part) or (None if local else fn.__globals__.get(part))
    return found if isinstance(found, type) and found.__qualname__ == fn.__qualname__.rpartition(".")[0] else None


def classes_in(value: Any, room: int = 200) -> dict[str, type[Any]]:
    """The classes of *value* and of some of its parts, by name: what an annotation may have meant."""
    found: dict[str, type[Any]] = {}
    parts: list[Any] = [value]
    each: object
    for each in parts:
        kind, part = type(each), cast("Any", each)
        if kind.__module__ != "builtins":
            found.setdefault(kind.__name__, kind)
        if len(parts) < room:
            inner = part.values() if kind is dict else part if kind in (list, tuple, set) else ()
            parts.extend(list(inner)[:room])
            parts.extend(getattr(part, "__dict__", {}).values())
    return found
