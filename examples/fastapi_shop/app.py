"""The shop: FastAPI, SQLAlchemy, Redis, and cacheguard between them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from cacheguard import CacheGuard
from cacheguard_asgi import HTTPCacheMiddleware
from cacheguard_sqlalchemy import OutboxRelay, invalidate_on_commit

from .catalogue import TOUCHED, Catalogue, Offer, offer
from .models import Model, Product, outbox

LOADS = 10  # loads at once in this process, and connections for them


@dataclass(frozen=True)
class Settings:
    """What the shop needs to know, from the environment if not said.

    Args:
        database: ``sqlite+aiosqlite:///…`` or ``postgresql+asyncpg://…``.
        redis: as `CacheGuard` takes it; None: its own default, ``CACHEGUARD_URL`` or this process's memory.
        slowness: seconds that each query takes longer, so that a cache can be felt.
    """

    database: str = field(default_factory=lambda: os.environ.get("SHOP_DATABASE", "sqlite+aiosqlite:///shop.db"))
    redis: str | None = None
    slowness: float = field(default_factory=lambda: float(os.environ.get("SHOP_SLOWNESS", "0")))


class NewProduct(BaseModel):
    """What a client says of a product."""

    name: str = Field(min_length=1)
    category: str = Field(min_length=1)
    cents: int = Field(ge=0)


class Discount(BaseModel):
    """Off the price of everything in a category."""

    percent: int = Field(gt=0, le=100)


# Dependencies


def _catalogue(request: Request) -> Catalogue:
    catalogue: Catalogue = request.app.state.catalogue
    return catalogue


def _guard(request: Request) -> CacheGuard:
    guard: CacheGuard = request.app.state.guard
    return guard


async def _session(request: Request) -> AsyncGenerator[AsyncSession]:
    async with request.app.state.sessions() as session:
        yield session  # whoever writes commits: the answer must not be on its way before that


TheCatalogue = Annotated[Catalogue, Depends(_catalogue)]
TheGuard = Annotated[CacheGuard, Depends(_guard)]
TheSession = Annotated[AsyncSession, Depends(_session)]


# Routes

routes = APIRouter()


def _for_shared_caches(response: Response, *tags: str) -> None:
    """The middleware may keep the response for a minute, and drops it with its tags; browsers ask each time."""
    response.headers["Cache-Control"] = "public, max-age=0, s-maxage=60"
    response.headers["Cache-Tag"] = ",".join(("products", *tags))


@routes.get("/products/{product_id}")
async def show(product_id: int, catalogue: TheCatalogue, response: Response) -> Offer:
    found = await catalogue.product(product_id)
    if found is None:
        raise HTTPException(404, f"there is no product {product_id}")
    _for_shared_caches(response, f"product:{product_id}")
    return found


@routes.get("/categories/{category}")
async def browse(category: str, catalogue: TheCatalogue, response: Response) -> list[Offer]:
    _for_shared_caches(response, f"category:{category}")
    return await catalogue.category(category)


@routes.post("/products", status_code=201)
async def add(new: NewProduct, session: TheSession) -> Offer:
    product = Product(**new.model_dump())
    session.add(product)
    await session.commit()
    return offer(product)


@routes.put("/products/{product_id}")
async def change(product_id: int, new: NewProduct, session: TheSession) -> Offer:
    product = await session.get(Product, product_id, with_for_update=True)
    if product is None:
        raise HTTPException(404, f"there is no product {product_id}")
    for name, value in new.model_dump().items():
        setattr(product, name, value)
    await session.commit()
    return offer(product)


@routes.delete("/products/{product_id}", status_code=204)
async def remove(product_id: int, session: TheSession) -> None:
    product = await session.get(Product, product_id)
    if product is not None:
        await session.delete(product)
        await session.commit()


@routes.post("/categories/{category}/discount", status_code=204)
async def discount(category: str, off: Discount, session: TheSession) -> None:
    cents = Product.cents * (100 - off.percent) // 100
    await session.execute(update(Product).where(Product.category == category).values(cents=cents))
    await session.commit()


@routes.get("/health")
async def health(request: Request, guard: TheGuard, catalogue: TheCatalogue) -> dict[str, Any]:
    size = await request.app.state.relay.apending()
    stats = guard.stats()
    return {
        "redis": stats.l2_up,
        "outbox": {"rows": size.rows, "age": size.age},
        "hits": stats.l1_hits + stats.l2_hits,
        "queries": dict(catalogue.queries),
    }


# The application


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; several in one process know nothing of each other."""
    settings = settings or Settings()
    guard = CacheGuard(settings.redis, namespace="shop", max_loads=LOADS)
    engine = create_async_engine(settings.database)
    # The loaders have connections of their own: they never wait for a request that holds one and waits for them.
    loads = create_async_engine(settings.database, pool_size=LOADS, max_overflow=0)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    # Told at once, after COMMIT; and once more by the relay, in case this process dies before it has told.
    invalidate_on_commit(guard, sessions, TOUCHED, outbox=outbox)
    load_sessions = async_sessionmaker(loads)
    invalidate_on_commit(guard, load_sessions, TOUCHED)
    relay = OutboxRelay(engine, outbox, guard)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with engine.begin() as connection:
            await connection.run_sync(Model.metadata.create_all)
        app.state.guard, app.state.sessions, app.state.relay = guard, sessions, relay
        app.state.catalogue = Catalogue(guard, load_sessions, slowness=settings.slowness)
        running = asyncio.create_task(relay.arun())
        yield
        relay.stop()
        await running
        await engine.dispose()
        await loads.dispose()
        await guard.aclose()

    app = FastAPI(title="A shop behind cacheguard", lifespan=lifespan)
    app.add_middleware(HTTPCacheMiddleware, guard=guard)
    app.include_router(routes)
    return app
