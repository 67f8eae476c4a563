"""Counts calls and bytecode instructions while a piece of work runs in this thread."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, Self

Counted = Callable[[FrameType], bool]


def everything(_: FrameType) -> bool:
    """Count each function that Python runs."""
    return True


def of_cacheguard(frame: FrameType) -> bool:
    """Count the library's own functions, and those that it has generated."""
    name: str | None = frame.f_globals.get("__name__")
    if name is None:  # made by `exec` in a scope of its own, as doors/wrapper.py does
        return frame.f_code.co_filename.startswith("<")
    return name == "cacheguard" or name.startswith("cacheguard.")


@dataclass
class Calls:
    """Counts calls of Python functions; a coroutine that goes on after a wait counts as one more call.

    ```python
    with Calls() as calls:
        work()
    calls.count, calls.names()
    ```
    """

    counted: Counted = everything
    codes: list[CodeType] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.codes)

    def names(self) -> list[str]:
        return [code.co_name for code in self.codes]

    def _seen(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is not _CALLS_END and self.counted(frame):
            self.codes.append(frame.f_code)

    def __enter__(self) -> Self:
        sys.setprofile(self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


@dataclass
class Instructions:
    """Counts bytecode instructions, each as the compiler wrote it, whatever the interpreter makes of it.

    It replaces the tracer of a debugger or of coverage while it counts.
    """

    counted: Counted = everything
    count: int = 0
    _before: Any = None

    def _called(self, frame: FrameType, event: str, _: object) -> Any:
        if event != "call" or frame.f_code is _INSTRUCTIONS_END or not self.counted(frame):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._step

    def _step(self, frame: FrameType, event: str, _: object) -> Any:
        self.count += event == "opcode"
        return self._step

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)


_CALLS_END = Calls.__exit__.__code__
_INSTRUCTIONS_END = Instructions.__exit__.__code__
