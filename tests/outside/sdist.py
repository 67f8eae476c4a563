"""Source distributions, which have the tests that a wheel leaves out."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "conformance"


def unpacked(name: str, version: str) -> Path:
    """The directory of the sdist of *name*, downloaded by pip once; the repository keeps nothing of it."""
    place = WORK / f"{name}-{version}"
    if not place.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=WORK) as scratch:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-binary", name, "--no-deps", "-d", scratch]
            subprocess.run([*pip, f"{name}=={version}"], check=True)
            (archive,) = Path(scratch).glob("*.tar.gz")
            with tarfile.open(archive) as packed:
                packed.extractall(scratch, filter="data")
            (directory,) = (each for each in Path(scratch).iterdir() if each.is_dir())
            shutil.move(directory, place)
    return place
