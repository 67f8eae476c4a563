"""Applications with FastAPI, Flask and Django answer the same with and without the cache, in two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def answers(*words: str) -> Any:
    command = [sys.executable, "-m", "tests.support.sample_apps", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
def test_three_calls_in_two_processes_answer_as_without_a_cache(redis_url: str, tmp_path: Path) -> None:
    database = str(tmp_path / "shop.sqlite3")
    expected, _ = answers(database)
    statuses = [[answer[0] for answer in of_one] for of_one in expected]
    assert statuses == [[200, 404, 200, 200] * 3, [200, 404, 200] * 3, [200, 200, 200, 404, 200] * 3]
    assert answers(database, redis_url) == [expected, 11]
    assert answers(database, redis_url) == [expected, 0]
