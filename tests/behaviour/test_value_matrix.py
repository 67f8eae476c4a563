"""Every family of values: what one process stores, another finds as itself; what would not be itself is not stored."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

from cacheguard import CacheGuard, Policy
from cacheguard.errors import CodecError
from tests.support.portrait import portrait
from tests.support.redis_server import RedisServer
from tests.support.value_cases import CASES, Case
from tests.support.value_table import PAGE, page_with_table


@pytest.fixture
def guard(redis_url: str) -> Iterator[CacheGuard]:
    with CacheGuard(redis_url, policy=Policy(l1=False)) as made:
        yield made


def found_elsewhere(url: str) -> list[str | None]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.value_reader", url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_value_is_itself_in_another_process_or_stays_out_of_redis(guard: CacheGuard, redis_url: str) -> None:
    given: list[str] = []
    for number, case in enumerate(CASES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = case.decorated(guard.cached(f"case:{number}"))()
            given.append(portrait(value) if case.path is None else "")
    found = found_elsewhere(redis_url)
    wrong = [
        f"{case.name}: {there} instead of {here if case.path is None else 'a refusal'}"
        for case, here, there in zip(CASES, given, found, strict=True)
        if there != (here if case.path is None else None)
    ]
    assert wrong == []
    assert guard.stats().unencodable == sum(case.path is not None for case in CASES)


def test_the_matrix_is_large_and_refusals_are_few() -> None:
    assert len(CASES) >= 250
    assert sum(case.path is None for case in CASES) / len(CASES) >= 0.8
    assert len({case.family for case in CASES}) >= 16


REFUSED = [case for case in CASES if case.path is not None]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_a_refusal_names_the_path_and_what_to_change(guard: CacheGuard, case: Case) -> None:
    decorated = case.decorated(guard.cached("refused"))
    with pytest.raises(CodecError) as caught:
        decorated.put(case.make())
    said = str(caught.value)
    assert case.path is not None
    assert case.path in said
    assert any(
        word in said for word in ("return a", "use ", "annotate", "serializer=", "contains itself", "no Unicode")
    ), said
    assert case.reason.endswith(".")


def test_a_refusal_is_one_warning(
    guard: CacheGuard, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    case = next(case for case in REFUSED if case.path == "['a'][0]")
    load = case.decorated(guard.cached("k"))
    for _ in range(3):
        load()
    (record,) = caplog.records
    assert "['a'][0] is a tests.support.value_classes.Point" in record.getMessage()
    assert redis_server.entries() == []


def test_the_page_about_values_has_the_table_of_this_matrix() -> None:
    page = PAGE.read_text()
    assert page_with_table(page) == page, "run `python -m tests.support.value_table`"
