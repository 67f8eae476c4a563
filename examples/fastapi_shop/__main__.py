"""``python -m examples.fastapi_shop``: the shop on http://127.0.0.1:8000, with a Redis of its own if none is named."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import uvicorn

from cacheguard.operations.demo.server import OwnRedis

from .app import Settings, create_app


def main() -> None:
    """Serve until Ctrl-C."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shop-", ignore_cleanup_errors=True)))
        redis = os.environ.get("CACHEGUARD_URL") or stack.enter_context(OwnRedis(directory)).url
        database = os.environ.get("SHOP_DATABASE") or f"sqlite+aiosqlite:///{directory}/shop.db"
        app = create_app(Settings(database=database, redis=redis))
        port = int(os.environ.get("SHOP_PORT", "8000"))
        print(f"the shop is on http://127.0.0.1:{port}/docs, with {database.partition(':')[0]} and {redis}")
        uvicorn.run(app, host="127.0.0.1", port=port, log_level=os.environ.get("SHOP_LOG", "warning"))


if __name__ == "__main__":
    main()
