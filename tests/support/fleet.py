"""Several processes that use one cache: small scripts, run side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Process:
    """A Python process that runs *script*; what it gets is in ``sys.argv``, what it says comes back as JSON."""

    def __init__(self, script: str, *words: object) -> None:
        environment = os.environ | {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'integrations'}",
            "PYTHONWARNINGS": "error",
        }
        command = [sys.executable, "-c", script, *map(str, words)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def hear(self) -> str:
        """The next line that it says."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def tell(self, line: str = "go") -> None:
        """Send it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def outcome(self, timeout: float = 60) -> Any:
        """The last line it says, once it has ended well."""
        said, _ = self._process.communicate(timeout=timeout)
        assert self._process.returncode == 0, f"the process ended with {self._process.returncode}: {said}"
        return json.loads(said.splitlines()[-1])
