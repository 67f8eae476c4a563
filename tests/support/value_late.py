"""A class that another module imports for type checkers only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Late:
    id: int
