"""Thousands of worlds whose Redis comes and goes need no word in the log about each."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("cacheguard")
    logger.disabled = True
    yield
    logger.disabled = False
