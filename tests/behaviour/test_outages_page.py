"""The table of faults in docs/outages.md is the one in the code."""

from __future__ import annotations

import re

import pytest

from cacheguard.faults import TREATMENTS, Fault, Remedy, Treatment, fault_of
from tests.support.pages import ROOT, Table, table

PAGE = (ROOT / "docs" / "outages.md").read_text(encoding="utf-8")
FAULTS = ("fault", "first reaction", "counts against the server")

# What the page calls a fault, where it is neither the server's own word nor the fault's.
NAMES = {
    "wrong or missing password": Fault.AUTHENTICATION,
    "TLS refused": Fault.TLS,
    "no permission": Fault.PERMISSION,
    "unknown script": Fault.NO_SCRIPT,
    "key of another type": Fault.WRONG_TYPE,
    "connection pool exhausted": Fault.POOL,
    "breaker open": Fault.LEFT_ALONE,
}
# How the page's words for each remedy begin.
REMEDIES = {
    "give up": Remedy.GIVE_UP,
    "reads work; invalidations that fail are pending": Remedy.QUEUE,
    "reads and invalidations work; values are loaded": Remedy.BYPASS,
    "go on without Redis": Remedy.BYPASS,
    "a miss": Remedy.BYPASS,
    "ask who": Remedy.REDISCOVER,
    "follow the redirection": Remedy.RETRY,
    "send it again": Remedy.RETRY,
    "once more": Remedy.RETRY,
}


def fault_named(words: str) -> Fault:
    code = re.search(r"`(\w+)`", words)
    if code is not None:
        return fault_of(Exception(f"{code[1]} says the server"))
    return NAMES[words] if words in NAMES else Fault(words)


def treatments(shown: Table) -> dict[Fault, Treatment]:
    """What the page says is done about each fault."""
    found: dict[Fault, Treatment] = {}
    for names, reaction, counts in shown.rows:
        (first,) = {remedy for words, remedy in REMEDIES.items() if reaction.startswith(words)}
        for name in re.split(r"[;,] ", names):
            fault = fault_named(name)
            assert fault not in found, f"{fault!r} is on the page twice"
            yes = counts.startswith("yes") or (counts.startswith("only ") and name in counts)
            found[fault] = Treatment(first, counts=yes, doubtful="one is enough" in counts)
    return found


def test_what_the_page_says_of_faults_is_what_the_code_does() -> None:
    real = dict(TREATMENTS)
    assert real.pop(Fault.OTHER) == Treatment(Remedy.BYPASS)  # nobody can name it
    assert treatments(table(PAGE, *FAULTS)) == real


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("| connection lost | once more over", "| connection lost | go on without Redis over"),
        ("| out of memory | reads and", "| out of memory | give up: reads and"),
        ("| yes, one is enough |", "| yes |"),
        ("| only `MASTERDOWN` |", "| no |"),
        ("; `NOREPLICAS` |", " |"),
    ],
)
def test_a_wrong_row_is_seen(right: str, wrong: str) -> None:
    assert PAGE.count(right) == 1
    assert treatments(table(PAGE.replace(right, wrong), *FAULTS)).items() != TREATMENTS.items() - {
        (Fault.OTHER, TREATMENTS[Fault.OTHER])
    }
