"""What is kept of an exception: the same class and content, without frames, as a new object each time.

A traceback keeps every local variable of every frame that it passed, and of their callers, alive. The object that was
raised belongs to the caller who got it. So whoever keeps an exception keeps another object, and raises yet another one.
"""

from __future__ import annotations

from contextlib import suppress
from types import FrameType, GetSetDescriptorType, MemberDescriptorType, TracebackType
from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)

MOST = 50  # exceptions in one: causes, contexts, members of groups
DEEPEST = 8  # exceptions in the arguments of one another
HEAP_TYPE = 1 << 9  # of `type.__flags__`: a class made by a class statement


def frameless(error: E) -> E | None:
    """*error* made anew without running its ``__init__`` or any code of its class; None if that is not possible.

    It has the same class, arguments, attributes, notes, cause and context. What it holds is not copied, except for the
    exceptions and tracebacks among it.
    """
    retelling = _Retelling()
    try:
        found: E | None = retelling.of(error)
        retelling.finish()
    except Exception:  # noqa: BLE001 - a class with needs of its own
        return None
    return found


class _Retelling:
    """Makes one exception anew, with all that hang on it."""

    def __init__(self) -> None:
        self._twins: dict[int, BaseException] = {}
        self._unfinished: list[tuple[BaseException, BaseException]] = []

    def of(self, error: BaseException, depth: int = 0) -> Any:
        """The twin of *error*, which `finish` completes; None if there are too many already."""
        twin = self._twins.get(id(error))
        if twin is not None:
            return twin
        if len(self._twins) >= MOST or depth >= DEEPEST:
            return None
        kind = type(error)
        base: Any = next(each for each in kind.__mro__ if not each.__flags__ & HEAP_TYPE)
        arguments = tuple(self._value(each, depth + 1) for each in error.args)
        twin = base.__new__(kind, *arguments)
        with suppress(TypeError, ValueError):  # the arguments that it was made with may be others than it has now
            base.__init__(twin, *arguments)
        twin.args = arguments
        self._twins[id(error)] = twin
        self._unfinished.append((error, twin))
        return twin

    def finish(self) -> None:
        """Give all twins their attributes, causes and contexts."""
        while self._unfinished:
            error, twin = self._unfinished.pop()
            kinds: tuple[type, ...] = type(error).__mro__
            for kind in kinds:
                for name, member in vars(kind).items():
                    if type(member) in (MemberDescriptorType, GetSetDescriptorType) and _is_content(kind, name):
                        with suppress(AttributeError, TypeError):  # not set, or not for us to set
                            value = member.__get__(error, type(error))
                            if value is not None or kind.__flags__ & HEAP_TYPE:  # None where it was never set, in C
                                member.__set__(twin, self._value(value))
            twin.__dict__.update({name: self._value(value) for name, value in error.__dict__.items()})
            twin.__cause__ = None if error.__cause__ is None else self.of(error.__cause__)
            twin.__context__ = None if error.__context__ is None else self.of(error.__context__)
            twin.__suppress_context__ = error.__suppress_context__

    def _value(self, value: Any, depth: int = 0) -> Any:
        """*value* without the frames in it."""
        if isinstance(value, BaseException):
            return self.of(value, depth)
        if isinstance(value, TracebackType | FrameType):
            return None
        if type(value) in (tuple, list) and depth < DEEPEST:  # a list such as the notes, which may be added to
            return type(value)(self._value(each, depth + 1) for each in value)
        return value


def _is_content(kind: type, name: str) -> bool:
    """True for a slot that says what happened; `AttributeError.obj` is a local variable of the frame that raised it."""
    return not name.startswith("__") and name != "args" and not (kind is AttributeError and name == "obj")
