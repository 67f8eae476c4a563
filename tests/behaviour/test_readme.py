"""What the README shows is what happens."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def run() -> None:
    scope: dict[str, object] = {"__name__": "readme"}
    for block in blocks():
        exec(compile(block, str(README), "exec", dont_inherit=True), scope)


def test_the_examples_run_within_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CACHEGUARD_URL", raising=False)
    assert len(blocks()) >= 3
    run()


def test_the_examples_run_on_redis(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    monkeypatch.setenv("CACHEGUARD_URL", redis_url)
    run()
