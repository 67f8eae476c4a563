"""Another process for the grammar of values: a line with a module and payloads comes in, what they are goes out."""

from __future__ import annotations

import base64
import json
import sys
from types import ModuleType
from typing import Any

from cacheguard.codec import Registry, return_codec
from cacheguard.errors import CodecError
from tests.support.portrait import portrait


def module_of(source: str, name: str = "drawn") -> Any:
    """The module of *source*, in place of any of that name."""
    module = ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, "<drawn>", "exec", dont_inherit=True), vars(module))
    return module


def read(source: str, payloads: list[tuple[str, str] | None]) -> list[str | None]:
    """The portraits of what the process finds; None for a miss."""
    codec = return_codec(module_of(source).load)
    found: list[str | None] = []
    for each in payloads:
        try:
            schema, payload = map(base64.b64decode, each or ("", ""))
            found.append(portrait(codec.decode(payload)) if each and Registry().reads(codec, schema) else None)
        except CodecError:
            found.append(None)
    return found


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(read(order["source"], order["payloads"])), flush=True)  # noqa: T201 - the parent reads it


if __name__ == "__main__":
    main()
