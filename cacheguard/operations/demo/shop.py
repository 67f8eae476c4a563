"""The database that is to be protected: a shop's products in SQLite, as far away as a real database is."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from pathlib import Path
from typing import TypedDict

from .meter import Meter

PRODUCTS = 100_000

_ADJECTIVES = ("Quiet", "Copper", "Nordic", "Folding", "Linen", "Round", "Slow", "Electric", "Garden", "Midnight")
_NOUNS = ("Lamp", "Kettle", "Chair", "Backpack", "Notebook", "Radio", "Blanket", "Bicycle", "Teapot", "Clock")
_SELECT = "SELECT id, name, price_cents, revision, description FROM products WHERE id = ?"
_UPDATE = "UPDATE products SET price_cents = ?, revision = revision + 1 WHERE id = ? RETURNING revision"


class Product(TypedDict):
    """A row, as the shop's pages show it. Each change of price raises its revision."""

    id: int
    name: str
    price_cents: int
    revision: int
    description: str


def build(path: Path, seed: int) -> None:
    """Write the shop database."""
    draw = random.Random(seed)
    rows = [
        (
            number,
            f"{draw.choice(_ADJECTIVES)} {draw.choice(_NOUNS)} {number}",
            draw.randrange(199, 99_900),
            f"{draw.choice(_ADJECTIVES)} and {draw.choice(_ADJECTIVES).lower()}, made to last. " * 3,
        )
        for number in range(1, PRODUCTS + 1)
    ]
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, price_cents INTEGER, "
            "revision INTEGER DEFAULT 1, description TEXT)"
        )
        with connection:
            connection.executemany(
                "INSERT INTO products (id, name, price_cents, description) VALUES (?, ?, ?, ?)", rows
            )
    finally:
        connection.close()


class Shop:
    """The database as one process sees it.

    A query costs what SQLite takes plus a way there and a way back, half of a time drawn from *distance* each, and
    waits when the database has as many queries at work as it can. A connection for each thread, all closed by `close`.
    """

    def __init__(self, path: Path, meter: Meter, distance: tuple[float, float], seed: str) -> None:
        self._path, self._meter, self._distance = path, meter, distance
        self._random = random.Random(seed)
        self._own = threading.local()
        self._open: list[sqlite3.Connection] = []

    def product(self, product_id: int) -> Product | None:
        """One product, or None."""
        way = self._random.uniform(*self._distance) / 2
        with self._meter.query():
            time.sleep(way)
            row = self._connection().execute(_SELECT, (product_id,)).fetchone()
            time.sleep(way)
        return None if row is None else _product(row)

    def reprice(self, product_id: int, price_cents: int) -> int:
        """Change a price and commit; returns the product's new revision."""
        with self._meter.query():
            ((revision,),) = self._connection().execute(_UPDATE, (price_cents, product_id)).fetchall()
        return int(revision)

    def products(self, first: int, last: int) -> list[Product]:
        """A range of products in one bulk read, as a warm-up job does it; not counted."""
        rows = self._connection().execute(_SELECT.replace("= ?", "BETWEEN ? AND ?"), (first, last))
        return [_product(row) for row in rows]

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA synchronous = OFF")
            self._own.connection = connection
            self._open.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._open:
            connection.close()


def _product(row: tuple[int, str, int, int, str]) -> Product:
    number, name, price, revision, description = row
    return Product(id=number, name=name, price_cents=price, revision=revision, description=description)
