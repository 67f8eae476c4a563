"""The Lua scripts, one per file, loaded by name; each room has its own in a folder ``lua``.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""

from __future__ import annotations

import re
from hashlib import sha1
from importlib.resources import files

from ...ports import Script

NEEDS_PRELUDE = re.compile(r"^-- needs: prelude$", re.MULTILINE)


def load(name: str, room: str = "protocol") -> Script:
    """The script in ``lua/<name>.lua`` of the folder *room* of the package.

    A line ``-- needs: prelude`` in its header puts ``lua/prelude.lua`` in front of it.
    """
    folder = files("cacheguard").joinpath(room, "lua")
    source = folder.joinpath(f"{name}.lua").read_text(encoding="utf-8")
    if NEEDS_PRELUDE.search(source):
        source = folder.joinpath("prelude.lua").read_text(encoding="utf-8") + source
    return Script(name, source, sha1(source.encode(), usedforsecurity=False).hexdigest())
