"""What docs/flask.md shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[3] / "docs" / "flask.md"


def run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    scope: dict[str, object] = {"__name__": "docs_flask"}
    for block in blocks:
        exec(compile(block, str(DOCS), "exec", dont_inherit=True), scope)
    assert scope["queries"] == 3


def test_the_examples_run_within_one_process() -> None:
    run()


def test_the_examples_run_on_redis(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    monkeypatch.setenv("CACHEGUARD_URL", redis_url)
    run()
