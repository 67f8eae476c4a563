"""The protocol is written in one place: its calls, their replies, and what stands in for Redis."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from cacheguard import protocol
from cacheguard.errors import Refused
from cacheguard.ports import Script
from cacheguard.protocol import calls, messages
from cacheguard.protocol.entry import Filled
from cacheguard.protocol.model import MemoryCommands

PACKAGE = Path(protocol.__file__).parents[1]
SCRIPTS = {value.name for value in vars(calls).values() if isinstance(value, Script)}


def in_order(names: list[str]) -> list[str]:
    """*names* of scripts, each where it came first."""
    return [name for name in dict.fromkeys(names) if name in SCRIPTS]


def made_by_calls() -> list[str]:
    return in_order([name for name, value in vars(calls).items() if inspect.isfunction(value)])


def test_every_script_is_a_call() -> None:
    stems = {path.stem for path in (PACKAGE / "protocol" / "lua").glob("*.lua")}
    assert stems - {"prelude"} == SCRIPTS
    assert set(made_by_calls()) == SCRIPTS


def test_the_model_has_the_calls_in_the_same_order() -> None:
    assert in_order([name.removeprefix("_") for name in vars(MemoryCommands)]) == made_by_calls()


def test_the_page_of_the_protocol_has_the_calls_in_the_same_order() -> None:
    words = re.findall(r"^([A-Z]+) ", protocol.__doc__ or "", re.MULTILINE)
    assert in_order([word.lower() for word in words]) == made_by_calls()


@pytest.mark.parametrize("room", ["tiers", "delivery", "engine", "process", "doors"])
def test_nobody_else_spells_a_call(room: str) -> None:
    for path in (PACKAGE / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            words = node.elts[:1] if isinstance(node, ast.Tuple) else []
            spelled = [word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)]
            assert not any(re.fullmatch("[A-Z]{3,}", word) for word in spelled), (path.name, spelled)
            assert getattr(node, "module", None) != "protocol.lua", path.name


@pytest.mark.parametrize(
    ("fields", "held"),
    [
        ((None, None, -2), None),
        ((b"v", b"5000", 65_000), (b"v", 60.0)),
        ((b"v", b"65000", 60_000), (b"v", -5.0)),
        ((b"v", b"0", -1), (b"v", -1.0)),
        ((b"v", None, 60_000), (b"v", None)),
        ((b"v", b"much", 60_000), (b"v", None)),
    ],
)
def test_what_a_key_holds_is_fresh_while_more_than_its_stale_window_is_left(fields: tuple[Any, ...], held: Any) -> None:
    assert calls.held(*fields) == held


def test_a_refused_ttl_is_no_entry() -> None:
    with pytest.raises(Refused, match="NOPERM"):
        calls.held(b"v", b"0", Refused("NOPERM"))


@pytest.mark.parametrize(
    ("reply", "leased"),
    [
        ([b"HIT", b"v", 0, 9_000], calls.Leased(b"HIT", (b"v", 9.0))),
        ([b"GRANTED", 7, None, 0, 65_000], calls.Leased(b"GRANTED", None, 7)),
        ([b"GRANTED", 7, b"v", 66_000, 65_000], calls.Leased(b"GRANTED", (b"v", -1.0), 7)),
        ([b"WAIT", 4_000, b"token", None, 0, 65_000], calls.Leased(b"WAIT", None, holder="token")),
        ([b"WAIT", 4_000, "token", b"v", 66_000, 65_000], calls.Leased(b"WAIT", (b"v", -1.0), holder="token")),
        ([b"BYPASS", 4_000], calls.Leased(b"BYPASS")),
        ([b"FAILED", b"why"], calls.Leased(b"FAILED", died_of=b"why")),
    ],
)
def test_an_answer_to_lease_is_read(reply: Any, leased: calls.Leased) -> None:
    assert calls.leased(reply) == leased


def test_answers_that_are_codes_are_read() -> None:
    assert [calls.filled(code) for code in (1, 2, 0, -1)] == list(Filled)[:4]
    assert calls.changed([1]) == calls.Changed(done=True, there=None)
    assert calls.changed([0]) == calls.Changed(done=False, there=None)
    assert calls.changed([2, b"v", 0, 1_000]) == calls.Changed(done=False, there=(b"v", 1.0))


def test_a_message_is_read_as_it_was_said() -> None:
    assert messages.heard(messages.drop("me.1", "a key")) == (messages.DROP, "me.1", "a key")
    assert messages.heard(messages.dirty("a key")) == (messages.DIRTY, "", "a key")
    assert messages.heard("something of a later release")[0] not in {messages.DROP, messages.DIRTY}
