"""`MISSING` means "no value"; ``None`` is a value."""

from __future__ import annotations

from enum import Enum
from typing import Final


class Missing(Enum):
    """Type of `MISSING`. It is an enum, so that type checkers narrow types after ``is not MISSING``."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


MISSING: Final = Missing.MISSING
