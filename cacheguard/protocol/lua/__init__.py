"""The Lua scripts, one per file, loaded by name."""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files

from ...ports import Script


def load(name: str) -> Script:
    """The script in ``<name>.lua``."""
    source = files(__name__).joinpath(f"{name}.lua").read_text(encoding="utf-8")
    return Script(name, source, sha1(source.encode(), usedforsecurity=False).hexdigest())
