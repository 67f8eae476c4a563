"""Another process: says what it finds in Redis for each case of the matrix of values, without loading anything."""

from __future__ import annotations

import json
import sys

from cacheguard import MISSING, CacheGuard, Policy
from tests.support import value_late  # noqa: F401 - what a function names under TYPE_CHECKING is imported by somebody
from tests.support.portrait import portrait
from tests.support.value_cases import CASES


def main(url: str) -> None:
    found: list[str | None] = []
    with CacheGuard(url, policy=Policy(l1=False)) as guard:
        for number, case in enumerate(CASES):
            value = case.decorated(guard.cached(f"case:{number}")).peek()
            found.append(None if value is MISSING else portrait(value))
    print(json.dumps(found))  # noqa: T201 - the parent reads it


if __name__ == "__main__":
    main(sys.argv[1])
