"""Run Starlette's own tests twice: as they are, and with every application behind the cache.

``make conformance-starlette``. The tests come with Starlette's sdist, of the release that is installed; pip downloads
it, nothing of it is kept in the repository. What they need is installed in an environment of their own below build/.
Exit status 1 if a test ends in another way behind the cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path

from tests.outside import sdist

HERE = Path(__file__).parent
ROOT, WORK = sdist.ROOT, sdist.WORK / "starlette"
NEEDED = ("pytest>=9", "trio", "httpx2[zstd]>=2", "blockbuster", "importlib-metadata", "opentelemetry-sdk", "http-sfv")


def environment() -> Path:
    """The Python of an environment with what the tests need and this cacheguard."""
    place = WORK / "venv"
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        venv.create(place, with_pip=True)
        full = f"starlette[full]=={version('starlette')}"
        subprocess.run([python, "-m", "pip", "install", "-q", full, *NEEDED, str(ROOT)], check=True)
        (place / "ready").touch()
    return python


def outcomes(python: Path, suite: Path, *options: str) -> dict[str, str]:
    """How each test ended, by its name."""
    report = WORK / "report.xml"
    command = [str(python), "-m", "pytest", "-q", "-o", "addopts=", f"--junitxml={report}", *options, "tests"]
    path = os.pathsep.join(map(str, (HERE, ROOT, ROOT / "integrations")))
    subprocess.run(command, cwd=suite, env={**os.environ, "PYTHONPATH": path}, check=False, capture_output=True)
    ended: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in {"failure", "error", "skipped"}]
        ended[f"{case.get('classname')}::{case.get('name')}"] = kinds[0] if kinds else "passed"
    return ended


def told(name: str, ended: dict[str, str]) -> str:
    counts = {kind: list(ended.values()).count(kind) for kind in ("passed", "failure", "error", "skipped")}
    return f"{name:28}" + "  ".join(f"{kind} {count}" for kind, count in counts.items()) + f"  of {len(ended)}"


def main() -> int:
    suite, python = sdist.unpacked("starlette", version("starlette")), environment()
    plain = outcomes(python, suite)
    cached = outcomes(python, suite, "-p", "wrapping")
    print(told("Starlette's tests", plain))
    print(told("behind the cache", cached))
    different = {name for name in plain.keys() | cached.keys() if plain.get(name) != cached.get(name)}
    for name in sorted(different):
        print(f"  {name}: {plain.get(name)} -> {cached.get(name)}")
    print(f"{len(different)} tests end differently")
    return bool(different) or not plain


if __name__ == "__main__":
    sys.exit(main())
