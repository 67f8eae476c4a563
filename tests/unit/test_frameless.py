from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, Self

import pytest

from cacheguard.protocol.frameless import DEEPEST, MOST, frameless


class Body:
    """Something large."""


class OfManyError(Exception):
    """Its arguments are not those of its constructor, which must not run again."""

    made = 0
    __slots__ = ("slot",)

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        type(self).made += 1
        self.code, self.detail, self.slot = code, detail, [code]

    def __str__(self) -> str:
        return f"{self.code}/{self.detail}"


class OfNewError(Exception):
    def __new__(cls, *_: object) -> Self:
        raise AssertionError("no code of the class is run")


class MissingFileError(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "gone", path)
        self.path = path


def decoded() -> str:
    return b"\xff".decode()


def without_os() -> object:
    import nothing_of_this_name  # type: ignore[import-not-found]

    return nothing_of_this_name


def of_many() -> None:
    raise OfManyError(404, detail="gone")


def noted() -> None:
    error = KeyError("k", 1)
    error.add_note("first")
    raise error


CASES: list[Callable[[], object]] = [
    of_many,
    noted,
    decoded,
    without_os,
    lambda: open("/nothing/of/this/name"),  # noqa: PTH123, SIM115
    lambda: (_ for _ in ()).throw(MissingFileError("/x")),
    lambda: (_ for _ in ()).throw(StopAsyncIteration("value")),
    lambda: compile("1 +", "name", "exec"),
    lambda: object().nothing,  # type: ignore[attr-defined]
    lambda: nothing_at_all,  # type: ignore[name-defined]  # noqa: F821
    lambda: dict[str, int]()["k"],
]


def raised(work: Callable[[], object]) -> Exception:
    try:
        work()
    except Exception as error:  # noqa: BLE001 - whatever it is
        return error
    raise AssertionError("it must raise")


@pytest.mark.parametrize("work", CASES)
def test_the_content_comes_back_in_a_new_object_without_frames(work: Callable[[], object]) -> None:
    error = raised(work)
    made = OfManyError.made
    for _ in range(2):
        twin: Any = frameless(error)
        assert twin is not error
        assert OfManyError.made == made
        assert type(twin) is type(error)
        assert (str(twin), repr(twin), twin.args, twin.__dict__) == (
            str(error),
            repr(error),
            error.args,
            error.__dict__,
        )
        for name in ("errno", "filename", "object", "start", "reason", "name", "lineno", "text", "slot", "value"):
            assert getattr(twin, name, None) == getattr(error, name, None), name
        assert twin.__traceback__ is None
        error = twin  # a twin can be made anew, too


def test_no_code_of_the_class_is_run() -> None:
    error = Exception.__new__(OfNewError, "a")
    twin = frameless(error)
    assert twin is not None
    assert (type(twin), twin.args) == (OfNewError, ("a",))


def test_notes_are_not_shared() -> None:
    error = raised(noted)
    twin = frameless(error)
    assert twin is not None
    twin.add_note("second")
    assert error.__notes__ == ["first"]


def holds(how: str, body: Body) -> Exception:
    """An exception with a frame that has *body*, somewhere about it."""

    def fail() -> None:
        kept = body
        raise ValueError(id(kept))

    inner = raised(fail)
    if how == "itself":
        return inner
    if how == "argument":  # as requests and urllib3 do
        return RuntimeError("failed", [("why", inner)])
    if how == "attribute":
        error = RuntimeError("failed")
        error.reason, error.trace = inner, inner.__traceback__  # type: ignore[attr-defined]
        return error
    if how == "group":
        return ExceptionGroup("several", [ExceptionGroup("of them", [inner]), ValueError("x")])
    error = RuntimeError("failed")
    if how == "cause":
        error.__cause__ = inner
    else:
        error.__context__, inner.__context__ = inner, error  # a circle
    return error


@pytest.mark.parametrize("how", ["itself", "argument", "attribute", "group", "cause", "context"])
def test_nothing_about_it_keeps_a_frame(how: str) -> None:
    body = Body()
    kept = weakref.ref(body)
    error = holds(how, body)
    twin = frameless(error)
    assert twin is not None
    assert str(twin) == str(error)
    if how == "group":
        assert isinstance(twin, ExceptionGroup)
        assert isinstance(twin.exceptions[0], ExceptionGroup)
    if how == "cause":
        assert isinstance(twin.__cause__, ValueError)
        assert twin.__suppress_context__
    if how == "context":
        assert isinstance(twin.__context__, ValueError)
        assert twin.__context__.__context__ is twin
    error.__context__ = error.__cause__ = None
    del body, error

    gc.collect()
    assert kept() is None


def test_what_an_attribute_was_looked_for_on_is_a_local_of_the_loader() -> None:
    body = Body()
    twin: Any = frameless(raised(lambda: body.nothing))  # type: ignore[attr-defined]
    assert (twin.name, twin.obj) == ("nothing", None)


def test_there_is_an_end_to_what_hangs_on_an_exception() -> None:
    error = first = ValueError(0)
    for number in range(2 * MOST):
        error.__context__ = ValueError(number)
        error = error.__context__
    twin: BaseException | None = frameless(first)
    number = 0
    while twin is not None:
        twin, number = twin.__context__, number + 1
    assert number == MOST
    nested: Any = ValueError()
    for _ in range(2 * DEEPEST):
        nested = ValueError(nested)
    assert frameless(nested) is not None
