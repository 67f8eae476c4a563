"""For all types and values of a grammar: another process reads the same value or nothing, another release nothing."""

from __future__ import annotations

import base64
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import PydanticUserError

from cacheguard.codec import return_codec
from cacheguard.errors import CodecError
from tests.support.portrait import portrait
from tests.support.value_child import module_of
from tests.support.value_grammar import Grammar, Kind, Program, next_release

VALUES = 10  # of each program: 50 programs are 500 values

Payload = tuple[str, str]


class Child:
    """The other process."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "tests.support.value_child"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.counts: Counter[str] = Counter()

    def read(self, source: str, payloads: list[Payload | None]) -> list[str | None]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"source": source, "payloads": payloads}) + "\n")
        self.process.stdin.flush()
        found: list[str | None] = json.loads(self.process.stdout.readline())
        return found


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    made = Child()
    yield made
    print(dict(made.counts))  # noqa: T201 - figures, under -s
    assert made.process.stdin is not None
    assert made.process.stdout is not None
    made.process.stdin.close()
    made.process.wait(10)
    made.process.stdout.close()


def stored(module: Any) -> tuple[list[Payload | None], list[str]]:
    """What the codec makes of the values of *module*, and what they are."""
    codec = return_codec(module.load)
    payloads: list[Payload | None] = []
    portraits: list[str] = []
    for number in range(len(module.VALUES)):
        value = module.load(number)
        portraits.append(portrait(value))
        try:
            payload = codec.encode(value)
        except CodecError:
            payloads.append(None)
        else:
            payloads.append((_text(codec.schema), _text(payload)))
    return payloads, portraits


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def drawn(draw: random.Random) -> tuple[Program, Any] | None:
    """A program and its module; None if pydantic has no schema for one of its classes."""
    program = Grammar(draw).program(VALUES)
    try:
        return program, module_of(program.source())
    except PydanticUserError:
        return None


def reached(program: Program) -> list[Kind]:
    """The classes that the annotation names, directly or through fields."""
    found: dict[str, Kind] = {}
    texts = [program.annotation]
    for text in texts:
        for kind in program.kinds:
            if kind.name not in found and re.search(rf"\b{kind.name}\b", text):
                found[kind.name] = kind
                texts.extend(annotation for _, annotation in kind.fields)
    return list(found.values())


grammar = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)


@grammar
@given(draw=st.randoms(use_true_random=False))
def test_another_process_reads_the_same_value_or_nothing(child: Child, draw: random.Random) -> None:
    made = drawn(draw)
    if made is None:
        return
    program, module = made
    payloads, portraits = stored(module)
    for payload, given_, back in zip(payloads, portraits, child.read(program.source(), payloads), strict=True):
        child.counts["values"] += 1
        child.counts["refused"] += payload is None
        assert back == (None if payload is None else given_), program.source()


@grammar
@given(draw=st.randoms(use_true_random=False))
def test_another_release_of_a_class_is_a_miss(child: Child, draw: random.Random) -> None:
    made = drawn(draw)
    if made is None:
        return
    program, module = made
    payloads, _ = stored(module)
    kinds = reached(program)
    if not kinds:
        return
    changed = draw.choice(kinds)
    newer = [next_release(kind, draw) if kind is changed else kind for kind in program.kinds]
    release = Program(newer, program.annotation, ["None"])
    child.counts["releases"] += 1
    assert child.read(release.source(), payloads) == [None] * len(payloads), (changed, release.source())
