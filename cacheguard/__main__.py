"""`python -m cacheguard`, and the console script."""

from __future__ import annotations

import sys

NEEDED = ("click", "rich")


def main() -> None:
    """Run the command line; without its libraries, say in one line how to get them."""
    try:
        from .operations.cli import commands
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in NEEDED:
            raise
        sys.exit(f"the command line needs {package}: pip install 'cacheguard[cli,embedded]'")
    commands(prog_name="cacheguard")


if __name__ == "__main__":
    main()
