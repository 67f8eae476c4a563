"""`MISSING`, the absence of a value; ``None`` is a value."""

from __future__ import annotations

from enum import Enum
from typing import Final


class Missing(Enum):
    """Type of `MISSING`. An enum, so that type checkers see what ``is not MISSING`` leaves."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


MISSING: Final = Missing.MISSING
