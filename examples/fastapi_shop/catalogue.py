"""What the shop reads, cached. What makes it stale is said once, in `TOUCHED`."""

from __future__ import annotations

import asyncio
from collections import Counter

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from cacheguard import CacheGuard
from cacheguard_sqlalchemy import Touches

from .models import Product

# A change of a row touches its own entry, and everything that carries one of these tags: lists, HTTP responses.
TOUCHED = {
    Product: Touches(
        keys=["product:{id}"],
        tags=["product:{id}", "category:{category}"],
        bulk=["products"],
    )
}


class Offer(BaseModel):
    """A product as it is shown. What is cached is this, not the ORM's object, which belongs to its session."""

    id: int
    name: str
    category: str
    cents: int


class Catalogue:
    """Cached queries. Each loader opens a session of its own: its view of the database is no older than the load."""

    def __init__(self, guard: CacheGuard, sessions: async_sessionmaker[AsyncSession], *, slowness: float = 0.0) -> None:
        self.queries: Counter[str] = Counter()

        @guard.cached("product:{product_id}", ttl="10m", tags=["products"])
        async def product(product_id: int) -> Offer | None:
            self.queries["product"] += 1
            await asyncio.sleep(slowness)
            async with sessions() as session:
                found = await session.get(Product, product_id)
                return None if found is None else offer(found)

        @guard.cached("category:{category}", ttl="10m", tags=["category:{category}", "products"])
        async def category(category: str) -> list[Offer]:
            self.queries["category"] += 1
            await asyncio.sleep(slowness)
            async with sessions() as session:
                found = await session.scalars(select(Product).where(Product.category == category).order_by(Product.id))
                return [offer(each) for each in found]

        self.product, self.category = product, category


def offer(product: Product) -> Offer:
    """The product as it is shown."""
    return Offer(id=product.id, name=product.name, category=product.category, cents=product.cents)
