"""``python -m tests.typing.samples``: do the pages' examples pass ``mypy --strict`` and pyright, as they are shown?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.pages import ROOT, name_of, pages, program

# Examples that no checker can follow: without their stubs, the classes of Django, REST framework and Celery have no
# types, and the arguments of tests are fixtures, which only pytest knows.
WITHOUT_TYPES = {"docs/django.md", "docs/rest-framework.md", "docs/testing.md", "docs/workers.md"}


def samples() -> dict[str, str]:
    """The programs of the pages, by names of modules; the lines of a program are those of its page."""
    return {
        name_of(page).removesuffix(".md").replace("/", "_").replace("-", "_").lower(): text
        for page in pages()
        if name_of(page) not in WITHOUT_TYPES and (text := program(page.read_text(encoding="utf-8")))
    }


def check(programs: dict[str, str]) -> list[str]:
    """What mypy and pyright say against these programs."""
    with tempfile.TemporaryDirectory() as place:
        for name, text in programs.items():
            Path(place, f"{name}.py").write_text(text, encoding="utf-8")
        paths = [str(ROOT), str(ROOT / "integrations")]
        settings = {"pythonVersion": "3.11", "extraPaths": paths, "reportMissingTypeStubs": False}
        Path(place, "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
        env = os.environ | {"MYPYPATH": os.pathsep.join(paths)}
        files = sorted(map(str, Path(place).glob("*.py")))
        cache = f"--cache-dir={ROOT / '.mypy_cache'}"
        mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-version=3.11", cache, *files]
        pyright = [sys.executable, "-m", "pyright", "-p", place, "--pythonpath", sys.executable]
        said: list[str] = []
        for command in (mypy, pyright):
            ended = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
            if ended.returncode:
                said.append(f"{ended.stdout}{ended.stderr}".replace(f"{place}/", ""))
        return said


if __name__ == "__main__":
    found = check(samples())
    print(*(found or ["The examples of the pages have no type errors."]), sep="\n")  # noqa: T201 - its output
    sys.exit(bool(found))
