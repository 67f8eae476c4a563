"""Measures in a process of its own; what breaks there gives a reason and stops nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class BrokenError(Exception):
    """The process left nothing; the text says why, in one line."""


def measured_apart(module: str, words: Sequence[str], patience: float, **environment: str) -> Any:
    """What ``python -m module words --out FILE`` leaves in the file, as JSON.

    Raises:
        BrokenError: it ended with an error, or not within *patience* seconds.
    """
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "measured.json"
        command = [sys.executable, "-m", module, *words, "--out", str(out)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=os.environ | environment,
                stderr=subprocess.PIPE, text=True, check=False, timeout=patience,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise BrokenError(f"not done within {patience:g} s") from None
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            raise BrokenError((done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1])
        return json.loads(out.read_text(encoding="utf-8"))
