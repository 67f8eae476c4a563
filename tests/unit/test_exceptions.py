from __future__ import annotations

from typing import Self

import pytest

from cacheguard.protocol.exceptions import absence, describe, rebuilt


class Plain(Exception):  # noqa: N818 - as users name them
    pass


class Demanding(Exception):  # noqa: N818 - as users name them
    def __init__(self, row: int, table: str) -> None:
        super().__init__(f"{table} has no row {row}")
        self.row = row


class Picky(Exception):  # noqa: N818 - as users name them
    def __new__(cls, *args: object) -> Self:
        if args != ("please",):
            raise TypeError("say please")
        return super().__new__(cls, *args)


HERE = __name__


def test_an_exception_is_its_name_and_its_plain_arguments() -> None:
    assert describe(Plain("a", 1, None, b"x")) == (f"{HERE}:Plain", ("a", 1, None, b"x"))


def test_arguments_that_are_no_plain_values_become_text_and_long_ones_are_cut() -> None:
    name, arguments = describe(Plain([1], "x" * 900, *range(20)))
    assert name == f"{HERE}:Plain"
    assert arguments[0] == "[1]"
    assert len(arguments[1]) == 500
    assert len(arguments) == 8


def test_an_argument_without_a_text_is_described_by_its_type() -> None:
    class Mute:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    _, (text,) = describe(Plain(Mute()))
    assert "Mute" in str(text)


def test_an_exception_is_made_anew_with_a_note_on_where_it_was_raised() -> None:
    error = rebuilt(("builtins:ValueError", ("bad",)))
    assert type(error) is ValueError
    assert error.args == ("bad",)
    assert "another process" in error.__notes__[0]


@pytest.mark.parametrize(
    "what",
    [
        ("no_such_module:Nothing", ()),
        (f"{HERE}:Nothing", ()),
        ("builtins:print", ()),
        ("builtins:KeyboardInterrupt", ()),
        ("builtins:object", ()),
        (f"{HERE}:Demanding", (1, "t")),  # its constructor is written in Python: it is not run
        (f"{HERE}:Picky", ("please",)),
        ("builtins:UnicodeDecodeError", ("too", "few")),
        ("", ()),
    ],
)
def test_what_is_no_plain_exception_of_this_process_is_not_made(what: tuple[str, tuple[object, ...]]) -> None:
    assert rebuilt(what) is None


def test_an_absence_is_one_of_the_classes_that_the_policy_names() -> None:
    assert type(absence((f"{HERE}:Plain", ("row 5",)), (KeyError, Plain))) is Plain
    assert type(absence(("elsewhere:Plain", ("row 5",)), (KeyError, Plain))) is Plain  # the module has moved
    assert type(absence(("elsewhere:Gone", ("row 5",)), (KeyError, Plain))) is KeyError
    assert type(absence(("elsewhere:Gone", ("row 5",)), ())) is LookupError


def test_an_absence_with_needs_of_its_own_is_made_without_its_constructor() -> None:
    error = absence((f"{HERE}:Demanding", ("t has no row 1",)), (Demanding,))
    assert type(error) is Demanding
    assert str(error) == "t has no row 1"
