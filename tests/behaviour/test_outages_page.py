"""What docs/outages.md shows is what happens, and its table is the one in the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cacheguard.faults import TREATMENTS, Fault, Remedy

PAGE = Path(__file__).parents[2] / "docs" / "outages.md"


@pytest.mark.parametrize("url", ["memory://", None])
def test_the_examples_run(url: str | None, redis_url: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    scope: dict[str, object] = {"__name__": "outages", "URL": url or redis_url}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), scope)
    scope["guard"].close()  # type: ignore[attr-defined]  # made by the page


def test_what_the_page_says_of_faults_is_what_the_code_does() -> None:
    counting = {fault for fault, treatment in TREATMENTS.items() if treatment.counts}
    assert counting == {
        Fault.AUTHENTICATION,
        Fault.TLS,
        Fault.MASTER_DOWN,
        Fault.LOADING,
        Fault.BUSY,
        Fault.MAX_CLIENTS,
        Fault.GARBAGE,
        Fault.REFUSED,
        Fault.NAME,
        Fault.NO_MASTER,
        Fault.LOST,
        Fault.TIMEOUT,
    }
    first = {remedy: {fault for fault, each in TREATMENTS.items() if each.first is remedy} for remedy in Remedy}
    assert first[Remedy.GIVE_UP] == {Fault.AUTHENTICATION, Fault.TLS}
    assert first[Remedy.QUEUE] == {Fault.PERMISSION, Fault.MISCONF, Fault.NO_REPLICAS}
    assert first[Remedy.REDISCOVER] == {Fault.READONLY, Fault.MASTER_DOWN, Fault.MOVED, Fault.CLUSTER_DOWN}
    assert first[Remedy.RETRY] == {Fault.ASK, Fault.TRY_AGAIN, Fault.NO_SCRIPT, Fault.LOST}
