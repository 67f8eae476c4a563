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
from cacheguard.protocol import calls, layout, messages
from cacheguard.protocol.entry import Filled
from cacheguard.protocol.layout import Record
from cacheguard.protocol.lua import load
from cacheguard.protocol.model import MemoryCommands
from tests.support.layout import CLAIMS, planted

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


NOW = 1_000_000


@pytest.mark.parametrize(
    ("raw", "held"),
    [
        (None, None),
        (planted(b"v", fresh_ms=60_000, now=NOW), calls.Held(b"v", 60.0, 0.0, 60.0)),
        (planted(b"v", fresh_ms=60_000, age_ms=9_000, now=NOW), calls.Held(b"v", 60.0, 9.0, 60.0)),
        (planted(b"v", fresh_ms=-5_000, stale_ms=65_000, now=NOW), calls.Held(b"v", -5.0, 0.0, 60.0)),
        (planted(b"v", fresh_ms=-5_000, stale_ms=5_000, now=NOW), None),
        (planted(b"v", fresh_ms=60_000, claims=CLAIMS, now=NOW), calls.Held(b"v", 60.0, 0.0, 60.0)),
        (planted(b"v", fresh_ms=60_000, now=NOW) + CLAIMS, calls.Held(b"v", 60.0, 0.0, 60.0)),  # claims of once
        (planted(b"v", fresh_ms=60_000, span_ms=59_999, now=NOW), calls.NOT_OURS),
        (planted(b"v", fresh_ms=60_000, layout=0xC3, now=NOW), calls.NOT_OURS),
        (planted(b"", fresh_ms=0, claims=CLAIMS, now=NOW), None),
        (b"", calls.NOT_OURS),
        (b"garbage", calls.NOT_OURS),
        (b"garbage" * 100, calls.NOT_OURS),
        (planted(b"v", fresh_ms=60_000, now=NOW)[:20], calls.NOT_OURS),
    ],
)
def test_what_lies_under_a_key_is_read_or_not_ours(raw: Any, held: Any) -> None:
    assert calls.held(raw, NOW) == held


def test_the_model_s_records_are_read_as_bytes_are() -> None:
    for fresh, span, dead in [(60_000, 60_000, 60_000), (-5_000, 60_000, 10), (60_000, 59_999, 90_000), (-5, 5, 0)]:
        record = Record(NOW + fresh, span, NOW + dead, NOW - 7_000, b"v")
        raw = planted(b"v", fresh_ms=fresh, span_ms=span, stale_ms=dead - fresh, age_ms=7_000, now=NOW)
        assert calls.held(record, NOW) == calls.held(raw, NOW)


def test_a_refusal_is_no_entry() -> None:
    with pytest.raises(Refused, match="NOPERM"):
        calls.held(Refused("NOPERM"), NOW)
    with pytest.raises(Refused, match="NOPERM"):
        calls.clock(Refused("NOPERM"), "k")


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"",
        b"garbage" * 20,
        planted(b"n" * 32, now=NOW)[:20],
        planted(b"n" * 32, flags=0, now=NOW),
        planted(b"n" * 32, layout=0xC3, now=NOW),
        planted(b"", claims=CLAIMS, now=NOW),
        Refused("WRONGTYPE"),
    ],
)
def test_a_marker_that_is_none_of_ours_has_no_nonce(raw: Any) -> None:
    assert calls.nonce(raw) is None
    assert calls.last_tagged(raw) is None


@pytest.mark.parametrize("claims", [b"", CLAIMS])
def test_a_marker_says_its_nonce_and_that_of_the_last_tag(claims: bytes) -> None:
    raw = planted(b"n" * 8 + b"t" * 8, claims=claims)
    assert (calls.nonce(raw), calls.last_tagged(raw)) == (b"n" * 8, b"t" * 8)
    record = Record(0, 0, 1, 0, b"n" * 8 + b"t" * 8)
    assert (calls.nonce(record), calls.last_tagged(record)) == (b"n" * 8, b"t" * 8)


FRESH, STALE = planted(b"v", fresh_ms=9_000, now=NOW), planted(b"v", fresh_ms=-1_000, stale_ms=9_000, now=NOW)


@pytest.mark.parametrize(
    ("reply", "leased"),
    [
        ([b"HIT", NOW, FRESH], calls.Leased(b"HIT", NOW, calls.Held(b"v", 9.0, 0.0, 9.0))),
        ([b"GRANTED", NOW, None, 0, 0], calls.Leased(b"GRANTED", NOW)),
        (
            [b"GRANTED", NOW, STALE, 3, 400],
            calls.Leased(b"GRANTED", NOW, calls.Held(b"v", -1.0, 0.0, 8.0), "", None, 3, 400),
        ),
        ([b"WAIT", NOW, None, 4_000, b"token"], calls.Leased(b"WAIT", NOW, holder="token")),
        ([b"WAIT", NOW, STALE, 4_000, "token"], calls.Leased(b"WAIT", NOW, calls.Held(b"v", -1.0, 0.0, 8.0), "token")),
        ([b"BYPASS", NOW, None, 4_000], calls.Leased(b"BYPASS", NOW)),
        ([b"FAILED", NOW, None, b"why", 2, 50], calls.Leased(b"FAILED", NOW, None, "", b"why", 2, 50)),
        (
            [b"FAILED", NOW, STALE, b"why", 2, 50],
            calls.Leased(b"FAILED", NOW, calls.Held(b"v", -1.0, 0.0, 8.0), "", b"why", 2, 50),
        ),
    ],
)
def test_an_answer_to_lease_is_read(reply: Any, leased: calls.Leased) -> None:
    assert calls.leased(reply) == leased


def test_answers_that_are_codes_are_read() -> None:
    assert [calls.filled(code) for code in (1, 2, 0, -1)] == list(Filled)[:4]
    assert calls.changed([1]) == calls.Changed(done=True, there=None)
    assert calls.changed([0]) == calls.Changed(done=False, there=None)
    assert calls.changed([2, NOW, FRESH]) == calls.Changed(done=False, there=calls.Held(b"v", 9.0, 0.0, 9.0))
    assert calls.was_removed([FRESH, NOW]) == calls.Held(b"v", 9.0, 0.0, 9.0)
    assert calls.was_removed([None, NOW]) is None


def test_several_servers_tell_each_its_own_time() -> None:
    times = {"a": [1, 500_000], "b": [2, 0]}
    assert [calls.clock(times, key) for key in "ab"] == [1_500, 2_000]


def test_a_message_is_read_as_it_was_said() -> None:
    for drop in (messages.Drop("a key", "me.1"), messages.Drop("a key", "-", 500, 10_000, "007")):
        assert messages.heard(drop.text()) == drop
    assert messages.heard(messages.dirty("a key")) == messages.Dirty("a key")
    assert messages.heard(messages.filled("a key")) == messages.Woken("a key")


@pytest.mark.parametrize(
    "message",
    [
        "something of a later release",
        "3 drop me.1 0 0 - k",
        "2 forget k",
        "2 drop me.1 k",
        "2 drop me.1 soon 0 - k",
        "drop me.1 k",
        "dirty k",
        "2",
        "",
    ],
)
def test_a_message_of_another_format_is_none_of_ours(message: str) -> None:
    with pytest.raises(messages.UnknownFormat):
        messages.heard(message)


def test_the_scripts_know_the_same_times_as_the_rest() -> None:
    said = re.findall(r"^local ([A-Z_, ]+) = ([0-9x'A-Z>a-z, ]+?)(?: --.*)?$", load("renew").source, re.MULTILINE)
    known = {
        name: value for names, values in said for name, value in zip(names.split(", "), values.split(", "), strict=True)
    }
    assert int(known["FLOOR_MS"]) == calls.FLOOR_MS
    assert int(known["LONGEST_MS"]) == layout.LONGEST_MS
    assert int(known["LONGEST_LEASE_MS"]) == layout.LONGEST_LEASE_MS
    assert int(known["LAYOUT"], 16) == layout.LAYOUT
    assert int(known["H"]) == layout.HEADER_BYTES
