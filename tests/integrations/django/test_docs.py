"""What docs/django.md shows is what happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[3] / "docs" / "django.md"


@pytest.mark.parametrize("where", ["redis", "memory"])
def test_the_example_runs(redis_url: str, tmp_path: Path, where: str) -> None:
    """In a process of its own: it is a project of its own."""
    (example,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(example, encoding="utf-8")
    url = redis_url if where == "redis" else "memory://"
    path = os.pathsep.join(filter(None, sys.path))
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env={**os.environ, "CACHEGUARD_URL": url, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert run.returncode == 0, run.stderr
