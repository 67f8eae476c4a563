"""What docs/http-cache.md shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[3] / "docs" / "http-cache.md"


def run() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(block, str(DOCS), "exec", dont_inherit=True), {"__name__": "docs_http_cache"})


def test_the_example_runs_within_one_process() -> None:
    run()


def test_the_example_runs_on_redis(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    monkeypatch.setenv("CACHEGUARD_URL", redis_url)
    run()
