"""The two applications: cache-aside as it is usually written, and the same with cacheguard."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal, Protocol, TypeAlias

from ...guard import CacheGuard
from .disasters import Disaster
from .server import OPERATION_TIMEOUT, connect
from .shop import PRODUCTS, Product, Shop

Side: TypeAlias = Literal["plain", "cacheguard"]
SIDES: tuple[Side, ...] = ("plain", "cacheguard")

LOADS_PER_PROCESS = 4


class Application(Protocol):
    """What a shop does with its cache."""

    def read(self, product_id: int) -> Product | None:
        """The product, from the cache if it is there."""
        ...

    def reprice(self, product_id: int, price_cents: int) -> int:
        """Change a price; returns the revision, once no reader should see an older one."""
        ...

    def prepare(self) -> None:
        """Do what has to be done once for all processes before there is traffic."""
        ...

    def warm(self, products: Iterable[Product]) -> None:
        """Put *products* into the cache."""
        ...

    def close(self) -> None:
        """End every connection."""
        ...


class Plain:
    """GET, on a miss SELECT and SETEX; after an UPDATE, DEL."""

    def __init__(self, shop: Shop, url: str, disaster: Disaster) -> None:
        self._shop, self._redis, self._ttl = shop, connect(url), disaster.ttl

    def read(self, product_id: int) -> Product | None:
        key = f"product:{product_id}"
        cached = self._redis.get(key)
        if cached is not None:
            product: Product = json.loads(cached)
            return product
        row = self._shop.product(product_id)
        if row is not None:
            self._redis.setex(key, self._ttl, json.dumps(row))
        return row

    def reprice(self, product_id: int, price_cents: int) -> int:
        revision = self._shop.reprice(product_id, price_cents)
        self._redis.delete(f"product:{product_id}")
        return revision

    def prepare(self) -> None:
        """Nothing to do."""

    def warm(self, products: Iterable[Product]) -> None:
        with self._redis.pipeline(transaction=False) as pipe:
            for product in products:
                pipe.setex(f"product:{product['id']}", self._ttl, json.dumps(product))
            pipe.execute()

    def close(self) -> None:
        self._redis.close()


class Guarded:
    """A decorated function; after an UPDATE, `invalidate`."""

    def __init__(self, shop: Shop, url: str, disaster: Disaster) -> None:
        self._shop = shop
        self._guard = guard = CacheGuard(
            url, namespace="shop", max_loads=LOADS_PER_PROCESS, operation_timeout=OPERATION_TIMEOUT
        )
        self._ids = ids = guard.bloom("products", capacity=PRODUCTS, error_rate=0.001) if disaster.bloom else None
        options: dict[str, Any] = {"ttl": disaster.ttl, **disaster.policy}

        @guard.cached("product:{product_id}", bloom=ids, validate=possible, **options)
        def product(product_id: int) -> Product | None:
            return shop.product(product_id)

        self._product = product
        self.read = product

    def reprice(self, product_id: int, price_cents: int) -> int:
        revision = self._shop.reprice(product_id, price_cents)
        self._product.invalidate(product_id)
        return revision

    def prepare(self) -> None:
        if self._ids is not None:
            self._ids.rebuild(range(1, PRODUCTS + 1))

    def warm(self, products: Iterable[Product]) -> None:
        for product in products:
            self._product.put(product, product["id"])

    def close(self) -> None:
        self._guard.close()


def possible(product_id: int) -> bool:
    """Whether a product could have this id."""
    return product_id > 0


def application(side: Side, shop: Shop, url: str, disaster: Disaster) -> Application:
    """The application of one side."""
    return Plain(shop, url, disaster) if side == "plain" else Guarded(shop, url, disaster)
