"""An exception comes back as itself, as a new object, or is not told."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import Callable
from typing import Any, Self

import pytest
from fastapi import HTTPException
from pydantic import BaseModel, ValidationError, field_validator
from werkzeug.exceptions import NotFound

from cacheguard.codec import TAGGED
from cacheguard.errors import CodecError, LoadTimeout
from cacheguard.protocol.exceptions import NotTold, absent, again, describe, made_of, packed, rebuilt, told, unpacked


class Plain(Exception):  # noqa: N818 - as users name them
    pass


class Demanding(Exception):  # noqa: N818 - as users name them
    def __init__(self, row: int, table: str) -> None:
        super().__init__(f"{table} has no row {row}")
        self.row = row
        self.tables = [table]


class Keyword(LookupError):  # noqa: N818 - as users name them
    def __init__(self, *, pk: int) -> None:
        self.pk = pk

    def __str__(self) -> str:
        return f"no row {self.pk}"


class Named(Exception):  # noqa: N818 - as users name them
    def __init__(self, name: str) -> None:
        super().__init__(f"no {name}")


class Slotted(Exception):  # noqa: N818 - as users name them
    __slots__ = ("pk",)

    def __init__(self, pk: int) -> None:
        self.pk = pk


class Picky(Exception):  # noqa: N818 - as users name them
    def __new__(cls, *args: object) -> Self:
        if args != ("please",):
            raise TypeError("say please")
        return super().__new__(cls, *args)


class Missing(FileNotFoundError):  # noqa: N818 - as users name them
    pass


class Counted(Exception):  # noqa: N818 - as users name them
    made = 0

    def __init__(self, *arguments: object) -> None:
        type(self).made += 1
        super().__init__(*arguments)


class Moody(Exception):  # noqa: N818 - as users name them
    """Says something else each time."""

    def __str__(self) -> str:
        return f"{id(self)}"


def caused() -> Exception:
    try:
        try:
            dict[int, int]()[1]
        except KeyError as error:
            raise Demanding(1, "t") from error
    except Demanding as error:
        return error
    raise AssertionError


def noted() -> Exception:
    error = Plain("x")
    error.add_note("a note")
    return error


def raised(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - is the answer
        return error
    raise AssertionError


EXCEPTIONS: list[Callable[[], Exception]] = [
    lambda: Plain("a", 1, None, b"x", (1, [2])),
    lambda: Demanding(1, "t"),
    lambda: Keyword(pk=3),
    lambda: Slotted(4),
    lambda: Picky("please"),
    lambda: Missing(2, "No such file", "x.txt"),
    lambda: FileNotFoundError(2, "No such file", "x.txt", None, "y.txt"),
    lambda: KeyError((1, "a")),
    ValueError,
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    lambda: ImportError("no", name="n", path="p"),
    lambda: StopIteration(5),
    lambda: raised(lambda: json.loads("{")),
    lambda: raised(lambda: compile("1 +", "x", "exec")),
    lambda: raised(lambda: None.missing),  # type: ignore[attr-defined]
    lambda: sqlite3.IntegrityError("unique"),
    asyncio.QueueEmpty,
    lambda: TimeoutError("late"),
    lambda: LoadTimeout("late"),
    lambda: HTTPException(404, "gone", {"x": "y"}),
    lambda: NotFound("no such page"),
    caused,
    noted,
]


def shown(error: BaseException) -> Any:
    facts = type(error), error.args, str(error), vars(error), error.__suppress_context__
    more = [
        getattr(error, name, None)
        for name in ("filename", "filename2", "errno", "name", "path", "value", "lineno", "pk")
    ]
    return (*facts, more, None if error.__cause__ is None else shown(error.__cause__))


@pytest.mark.parametrize("make", EXCEPTIONS)
def test_an_exception_comes_back_as_itself_as_a_new_object(make: Callable[[], Exception]) -> None:
    error = make()
    what = describe(error)
    assert what.whole
    there = unpacked(TAGGED.decode(TAGGED.encode(packed(what))))
    for back in (made_of(what), again(error), made_of(there), made_of(there)):
        assert back is not error
        assert shown(back) == shown(error)
        assert back.__context__ is None
        assert back.__traceback__ is None


def test_what_one_caller_changes_no_other_sees() -> None:
    error = Demanding(1, "t")
    what = describe(error)
    error.tables.append("mine")
    made: Any = made_of(what)
    made.tables.append("his")
    other: Any = made_of(what)
    assert other.tables == ["t"]


def test_no_constructor_is_run() -> None:
    what = describe(Counted("x"))
    before = Counted.made
    made_of(what)
    made_of(unpacked(packed(what)))
    assert Counted.made == before


def test_what_would_not_come_back_whole_is_not_told() -> None:
    for error in (Moody(), Plain(Moody()), caused_by_exit()):
        what = describe(error)
        whole = what.whole
        assert rebuilt(unpacked(packed(told(error)))) is None
        if not whole:
            with pytest.raises(CodecError):
                packed(what)
            assert again(error).__context__ is None


class Sized(BaseModel):
    size: int
    name: str = ""

    @field_validator("name")
    @classmethod
    def _never(cls, value: str) -> str:
        raise ValueError(f"not {value}")


def test_what_pydantic_has_to_say_is_a_new_object_for_each_caller() -> None:
    with pytest.raises(ValidationError) as caught:
        Sized.model_validate({"size": "x", "name": "y"})
    error = caught.value
    error.__context__ = KeyError("of another caller")
    twin = again(error)
    assert isinstance(twin, ValidationError)
    assert twin is not error
    assert (str(twin), repr(twin.errors())) == (str(error), repr(error.errors()))
    assert (twin.__context__, twin.__traceback__) == (None, None)


def caused_by_exit() -> Exception:
    error = Plain("x")
    error.__cause__ = SystemExit(1)
    return error


def test_a_failure_that_is_too_large_or_has_no_text_is_not_told() -> None:
    class Mute(Exception):  # noqa: N818 - as users name them
        def __str__(self) -> str:
            raise RuntimeError("no words")

    for error in (Plain("x" * 5000), Mute(object())):
        assert told(error).kind is NotTold
        assert rebuilt(told(error)) is None


def test_a_failure_of_another_process_has_a_note_on_where_it_was_raised() -> None:
    error = rebuilt(unpacked(packed(told(ValueError("bad")))))
    assert type(error) is ValueError
    assert error.args == ("bad",)
    assert "another process" in error.__notes__[0]


@pytest.mark.parametrize(
    "raw",
    [
        ("no_such_module:Nothing", (), {}, {}, None, False),
        (f"{__name__}:Nothing", (), {}, {}, None, False),
        ("builtins:print", (), {}, {}, None, False),
        ("builtins:KeyboardInterrupt", (), {}, {}, None, False),
        ("builtins:object", (), {}, {}, None, False),
        ("builtins:UnicodeDecodeError", ("too", "few"), {}, {}, None, False),
        ("builtins:ValueError", [], {}, {}, None, False),
        ("builtins:ValueError", (), [], {}, None, False),
        ("builtins:ValueError", (), {}, {"nothing": 1}, None, False),
        ("builtins:ValueError", (), {}, {}, ("builtins:object", (), {}, {}, None, False), False),
        ("builtins:ValueError", ("as in an older release",)),
        ("", (), {}, {}, None, False),
        5,
    ],
)
def test_what_is_no_exception_of_this_process_is_a_miss(raw: Any) -> None:
    with pytest.raises(CodecError):
        unpacked(raw)


def test_a_local_class_is_found_among_those_that_are_known() -> None:
    class Local(LookupError):  # noqa: N818 - as users name them
        pass

    class Deeper(Local):
        pass

    raw = packed(describe(Deeper(1)))
    with pytest.raises(CodecError):
        unpacked(raw)
    assert type(made_of(unpacked(raw, [Local]))) is Deeper


def test_an_absence_without_a_load_is_made_by_the_constructor() -> None:
    for kind in (Plain, LookupError, KeyError):
        assert absent(kind, "row 5").args == ("row 5",)
    assert absent(NotFound, "row 5").args == ()
    assert str(absent(Named, "row 5")) == "no row 5"
    for demanding in (HTTPException, Demanding, Keyword, UnicodeDecodeError):
        with pytest.raises(TypeError):
            absent(demanding, "row 5")

    class Bare(Exception):  # noqa: N818 - as users name them
        def __init__(self) -> None:
            super().__init__("nothing")

    assert str(absent(Bare, "row 5")) == "nothing"
    assert sys.exception() is None
