"""Random HTTP programs against the plainest model of a correct shared cache (`tests/support/http_model.py`)."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from cacheguard import CacheGuard
from cacheguard_asgi import HTTPCacheMiddleware
from cacheguard_asgi.rules import Verdict
from cacheguard_asgi.shelf import Shelf
from tests.support.http_program import Stage
from tests.support.http_shapes import PROGRAMS, Ask, Page, Program

PROGRAMS_IN = {"dev": 30, "ci": 200}.get(os.environ.get("CACHEGUARD_HYPOTHESIS_PROFILE", "dev"), 1000)
HEALTH = list(HealthCheck)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    logging.getLogger("cacheguard.asgi").setLevel(logging.CRITICAL)  # failing applications are a part of it
    with asyncio.Runner() as runner:
        yield runner
    logging.getLogger("cacheguard.asgi").setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def one_worker(runner: asyncio.Runner) -> Iterator[list[CacheGuard]]:
    guard = CacheGuard("memory://", namespace="programs")
    yield [guard]
    runner.run(guard.aclose())


@pytest.fixture(scope="module")
def two_workers(runner: asyncio.Runner, redis_server: Any) -> Iterator[list[CacheGuard]]:
    guards = [CacheGuard(redis_server.url, namespace="programs", operation_timeout=2) for _ in range(2)]
    yield guards
    for guard in guards:
        runner.run(guard.aclose())


# Programs that once got an answer which the model forbids.
LISTENS = (Page("dated", listens=True), Page("checked"))
FOUND = [
    Program(LISTENS, ((Ask(0, condition=("star", 0)),), (Ask(0),))),
]


@pytest.mark.parametrize("program", FOUND, ids=range(len(FOUND)))
def test_what_was_found_once_is_right(runner: asyncio.Runner, one_worker: list[CacheGuard], program: Program) -> None:
    assert runner.run(Stage(program, one_worker).play()) == []


@settings(max_examples=PROGRAMS_IN, suppress_health_check=HEALTH)
@given(program=PROGRAMS)
def test_every_answer_is_one_that_a_correct_cache_may_give(
    runner: asyncio.Runner, one_worker: list[CacheGuard], program: Program
) -> None:
    assert runner.run(Stage(program, one_worker).play()) == []


@settings(max_examples=max(10, PROGRAMS_IN // 5), suppress_health_check=HEALTH)
@given(program=PROGRAMS)
def test_two_workers_on_one_redis_answer_as_a_correct_cache_may(
    runner: asyncio.Runner, two_workers: list[CacheGuard], program: Program
) -> None:
    assert runner.run(Stage(program, two_workers).play()) == []


@pytest.mark.chaos
@settings(max_examples=4000, suppress_health_check=HEALTH)
@given(program=PROGRAMS)
def test_four_thousand_programs(runner: asyncio.Runner, one_worker: list[CacheGuard], program: Program) -> None:
    assert runner.run(Stage(program, one_worker).play()) == []


@pytest.mark.chaos
@settings(max_examples=1000, suppress_health_check=HEALTH)
@given(program=PROGRAMS)
def test_a_thousand_programs_of_two_workers(
    runner: asyncio.Runner, two_workers: list[CacheGuard], program: Program
) -> None:
    assert runner.run(Stage(program, two_workers).play()) == []


# Many clients of two users at once


def crowd(count: int) -> Program:
    """*count* requests at the same time. Many clients leave in the middle."""
    draw = Random(count)
    kinds = ("private", "cookie", "unstored", "fresh", "bare", "language")
    pages = tuple(Page(kind, listens=bool(draw.getrandbits(1))) for kind in kinds)
    hows = [(how, after) for how in ("quietly", "raising", "cancelled") for after in range(4)]
    asks = [
        Ask(
            draw.randrange(len(pages)),
            worker=draw.randrange(2),
            who=f"{draw.choice(['ann', 'bob'])} by {draw.choice(['cookie', 'authorization'])}",
            language=draw.choice([None, "en", "de"]),
            leave=draw.choice([None, None, draw.choice(hows)]),
            delay=draw.randrange(40),
            work=draw.randrange(4),
        )
        for _ in range(count)
    ]
    return Program(pages, (tuple(asks),))


def test_no_answer_is_crossed_or_partial_among_five_hundred(
    runner: asyncio.Runner, one_worker: list[CacheGuard]
) -> None:
    stage = Stage(crowd(500), one_worker, patience=30)
    assert runner.run(stage.play()) == []
    assert len(stage.asked) > 100


def test_a_crossed_answer_is_noticed_among_five_hundred(
    runner: asyncio.Runner, one_worker: list[CacheGuard], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, *BUGS["private pages are stored"])
    assert "asked has" in str(runner.run(Stage(crowd(500), one_worker, patience=30).play()))


@pytest.mark.chaos
def test_no_answer_is_crossed_or_partial_among_ten_thousand(
    runner: asyncio.Runner, two_workers: list[CacheGuard]
) -> None:
    stage = Stage(crowd(10_000), two_workers, patience=120)
    assert runner.run(stage.play()) == []
    assert len(stage.asked) > 2000


# The model is checked, too: it has to find these.


def _forgets_nothing(_: Any) -> Any:
    async def invalidate(*_: Any) -> None:
        return

    return invalidate


def _one_variant(_: Any) -> Any:
    return lambda key, variants, _: f"{key} {variants.generation}"


def _always(_: Any) -> Any:
    return lambda *_, **__: True


def _served_whatever_its_age(_: Any) -> Any:
    return lambda *_: Verdict.SERVE


def _one_path(key_of: Any) -> Any:
    def same(*args: Any) -> str | None:
        key = key_of(*args)
        return None if key is None else re.sub(r"/r\d", "/", key)

    return same


BUGS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "fields in Vary are not looked at": ("variant_key", _one_variant),
    "private pages are stored": ("_may_store", _always),
    "stale pages are served": ("judge", _served_whatever_its_age),
    "If-Range is not looked at": ("range_applies", _always),
    "every condition is fulfilled": ("is_not_modified", _always),
    "writes invalidate nothing": ("invalidate", _forgets_nothing),
    "paths are not told apart": ("key_of", _one_path),
    "nothing is served from the cache": ("is_led_here", _always),
}


def plant(monkeypatch: pytest.MonkeyPatch, name: str, bug: Callable[[Any], Any]) -> None:
    """Put a bug in the place of the function *name*, wherever the middleware uses it."""
    places = [module for path, module in sys.modules.items() if path.startswith("cacheguard_asgi.")]
    found = [place for place in [*places, Shelf] if hasattr(place, name)]
    assert found, name
    for place in found:
        monkeypatch.setattr(place, name, bug(getattr(place, name)))


class DeafMiddleware:
    """The cache as it were if it did not notice that clients leave: the application is told without it."""

    def __init__(self, app: Any, guard: CacheGuard, **options: Any) -> None:
        async def told(scope: Any, _: Any, send: Any) -> None:
            await app(scope, scope["of the server"], send)

        self._cached = HTTPCacheMiddleware(told, guard, **options)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def never() -> Any:
            return await asyncio.get_running_loop().create_future()

        await self._cached({**scope, "of the server": receive}, never, send)


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_the_model_finds_planted_bugs(
    runner: asyncio.Runner, one_worker: list[CacheGuard], monkeypatch: pytest.MonkeyPatch, bug: str
) -> None:
    plant(monkeypatch, *BUGS[bug])
    assert is_noticed(runner, one_worker, HTTPCacheMiddleware), bug


@pytest.mark.slow
def test_the_model_finds_a_cache_that_does_not_hear_of_clients_that_leave(
    runner: asyncio.Runner, one_worker: list[CacheGuard]
) -> None:
    assert is_noticed(runner, one_worker, DeafMiddleware)


QUICKLY = settings(
    max_examples=400,
    suppress_health_check=HEALTH,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    database=None,
)


class NoticedError(Exception):
    """The model has found what it had to find."""


def is_noticed(runner: asyncio.Runner, guards: list[CacheGuard], wrap: Callable[..., Any]) -> bool:
    """Whether one of some hundred programs gets an answer that the model forbids."""
    caught: list[Program] = []

    @seed(5)
    @QUICKLY
    @given(program=PROGRAMS)
    def search(program: Program) -> None:
        if not caught and runner.run(Stage(program, guards, wrap, patience=0.5).play()):
            caught.append(program)
        if caught:
            raise NoticedError

    with suppress(NoticedError):
        search()
    return bool(caught)
