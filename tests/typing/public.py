"""Whether a type checker knows the type of every public symbol of every package that is shipped.

Asks pyright about the packages as they are installed beside a Python: `python -m tests.typing.public [PYTHON]`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def shipped() -> list[str]:
    """The packages in the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [Path(each).name for each in settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]


def asked(package: str, python: Path) -> dict[str, Any]:
    """What pyright says of an installed package."""
    # It takes its Python from PATH here, and the package from the working directory if that has one.
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    surroundings["PATH"] = os.pathsep.join([str(python.parent), surroundings.get("PATH", "")])
    command = [
        str(Path(sys.executable).parent / "pyright"),
        "--verifytypes",
        package,
        "--ignoreexternal",
        "--outputjson",
    ]
    with tempfile.TemporaryDirectory() as elsewhere:
        run = subprocess.run(command, cwd=elsewhere, env=surroundings, capture_output=True, text=True, check=False)
    report: dict[str, Any] = json.loads(run.stdout)["typeCompleteness"]
    return report


def main(python: Path) -> int:
    """Print a score for each package, and what is unknown; 1 if anything is."""
    failed = False
    for package in shipped():
        report = asked(package, python)
        symbols = report["exportedSymbolCounts"]["withKnownType"]
        complete = report["completenessScore"] == 1 and symbols > 0  # of a package that is not there it knows nothing
        failed |= not complete
        print(f"{package:24} {report['completenessScore']:7.2%} of its public symbols have a known type")
        for symbol in report["symbols"]:
            for each in symbol["diagnostics"]:
                if each["severity"] == "error":
                    print(f"    {symbol['name']}: {each['message'].splitlines()[0]}")
        if not symbols:
            print("    it is not installed there, or has no py.typed")
    return int(failed)


if __name__ == "__main__":
    # Not resolved: the python of a virtual environment is a link out of it.
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else sys.executable).absolute()))
