"""Set up the environment of the peers; one that cannot be installed is noted with its reason, and the rest goes on.

Run by a Python that has nothing but its standard library: ``python benchmarks/compare/install.py .venv/bench``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = ".[speed,embedded]"
TOOLS = "psutil>=6"


def pip(python: Path, *requirements: str) -> str | None:
    """Install *requirements*; the last line of what pip said if it could not."""
    command = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *requirements]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.startswith("ERROR")]
    return lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {done.returncode}"


def main() -> int:
    """All at once; only where that fails, one by one."""
    home = Path(sys.argv[1])
    peers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]["bench"]
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
    if (failed := pip(python, "-e", OURS, TOOLS)) is not None:
        print(failed, file=sys.stderr)
        return 1
    reasons: dict[str, str] = {}
    if pip(python, "-e", OURS, TOOLS, *peers) is not None:
        reasons = {peer: why for peer in peers if (why := pip(python, peer)) is not None}
    for peer, why in reasons.items():
        print(f"not installed: {peer}: {why}")
    (home / "not-installed.json").write_text(json.dumps(reasons, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
