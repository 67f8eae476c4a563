"""The absence of a value, where ``None`` is one."""

from __future__ import annotations

from typing import Final, Self


class Missing:
    """Type of `MISSING`, the absence of a value; ``None`` is a value."""

    _only: Self | None = None

    def __new__(cls) -> Self:
        """The one instance."""
        if cls._only is None:
            cls._only = super().__new__(cls)
        return cls._only

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()
