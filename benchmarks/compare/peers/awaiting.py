"""Peers over Redis that are awaited."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.compare.peers.blocking import TAGS
from benchmarks.compare.peers.setting import TTL, Setting, Store
from cacheguard import CacheGuard, Policy


@asynccontextmanager
async def redis_py(setting: Setting) -> AsyncIterator[Store]:
    """The baseline: redis-py's asyncio client, by hand."""
    import redis.asyncio

    client: Any = redis.asyncio.Redis.from_url(setting.url)

    async def hit(number: int) -> Any:
        return pickle.loads(await client.get(f"plain:{number}"))

    def many(numbers: Any) -> Any:
        names = [f"plain:{number}" for number in numbers]

        async def read() -> list[Any]:
            return [pickle.loads(each) for each in await client.mget(names)]

        return read

    async def fill(number: int) -> None:
        await client.set(f"plain:{number}", pickle.dumps(setting.value), ex=TTL)

    async def miss(number: int) -> Any:
        raw = await client.get(f"plain:{number}")
        if raw is not None:
            return pickle.loads(raw)
        await client.set(f"plain:{number}", pickle.dumps(setting.value), ex=TTL)
        return setting.value

    yield Store("redis", fill, hit, "GET + pickle.loads", many, miss, "MGET + pickle.loads", "GET + SET, unprotected")
    await client.aclose()


@asynccontextmanager
async def bare_streams(setting: Setting) -> AsyncIterator[Store]:
    """Asyncio's own streams without a client; one command at a time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", setting.port)

    def ask(*words: bytes) -> None:
        parts = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        writer.write(b"*%d\r\n%b" % (len(words), parts))

    async def fill(number: int) -> None:
        ask(b"SET", b"bare:%d" % number, pickle.dumps(setting.value))
        await reader.readuntil(b"\r\n")

    async def hit(number: int) -> Any:
        ask(b"GET", b"bare:%d" % number)
        head = await reader.readuntil(b"\r\n")
        return pickle.loads(await reader.readexactly(int(head[1:]) + 2))

    yield Store("python", fill, hit, "asyncio streams, GET + pickle.loads: near the limit")
    writer.close()
    await writer.wait_closed()


def guarded(name: str, *, nested: bool = False, tags: Any = (), **options: Any) -> Any:
    """An opener of cacheguard with *options*."""

    @asynccontextmanager
    async def opener(setting: Setting) -> AsyncIterator[Store]:
        policy = Policy(ttl=TTL, l1=False)
        async with CacheGuard(setting.url, namespace=name, policy=policy, operation_timeout=5, **options) as outer:
            guard = outer.namespace("middle").namespace("inner") if nested else outer

            async def load(number: int) -> Any:
                return setting.value

            if isinstance(setting.value, str):
                load.__annotations__["return"] = str
            cached = guard.cached("row:{number}", tags=tags)(load)

            async def read(names: list[str]) -> list[Any]:
                return list((await guard.aget_many(names)).values())

            def many(numbers: Any) -> Any:
                names = [f"row:{number}" for number in numbers]
                return lambda: read(names)

            yield Store("cacheguard", cached, cached, "@guard.cached", many, cached, "guard.aget_many", "@guard.cached")

    return opener


@asynccontextmanager
async def guarded_get(setting: Setting) -> AsyncIterator[Store]:
    """Reading by key text instead of a decorated function."""
    policy = Policy(ttl=TTL, l1=False)
    async with CacheGuard(setting.url, namespace="get", policy=policy, operation_timeout=5) as guard:
        yield Store(
            "cacheguard",
            lambda number: guard.aset(f"row:{number}", setting.value),
            lambda number: guard.aget(f"row:{number}"),
            "guard.aget",
            miss=lambda number: guard.aget_or_set(f"row:{number}", lambda: setting.value),
            how_miss="guard.aget_or_set",
        )


@asynccontextmanager
async def aiocache(setting: Setting) -> AsyncIterator[Store]:
    """Aiocache with its Redis backend and pickle."""
    from aiocache import Cache, cached_stampede
    from aiocache.serializers import PickleSerializer

    options: Any = {"endpoint": "127.0.0.1", "port": setting.port, "serializer": PickleSerializer()}
    cache: Any = Cache(Cache.REDIS, **options)

    @cached_stampede(
        lease=2, ttl=TTL, cache=Cache.REDIS, key_builder=lambda fn, number: f"stampede:{number}", **options
    )
    async def load(number: int) -> Any:
        return setting.value

    def many(numbers: Any) -> Any:
        names = [f"aiocache:{number}" for number in numbers]
        return lambda: cache.multi_get(names)

    yield Store(
        "aiocache",
        lambda number: cache.set(f"aiocache:{number}", setting.value, ttl=TTL),
        lambda number: cache.get(f"aiocache:{number}"),
        "cache.get",
        many,
        load,
        "cache.multi_get",
        "@cached_stampede",
    )
    await cache.close()
    await load.cache.close()


@asynccontextmanager
async def cashews(setting: Setting) -> AsyncIterator[Store]:
    """Cashews on Redis."""
    from cashews import Cache

    cache: Any = Cache()
    cache.setup(setting.url, client_side=False)
    await cache.init()

    @cache(ttl=TTL, key="load:{number}", lock=True)
    async def load(number: int) -> Any:
        return setting.value

    def many(numbers: Any) -> Any:
        names = [f"cashews:{number}" for number in numbers]
        return lambda: cache.get_many(*names)

    yield Store(
        "cashews",
        lambda number: cache.set(f"cashews:{number}", setting.value, expire=TTL),
        lambda number: cache.get(f"cashews:{number}"),
        "cache.get",
        many,
        load,
        "cache.get_many",
        "@cache(lock=True)",
    )
    await cache.close()


@asynccontextmanager
async def py_cachify(setting: Setting) -> AsyncIterator[Store]:
    """py-cachify around redis-py's asyncio client."""
    import redis.asyncio
    from py_cachify import cached, init_cachify

    client: Any = redis.asyncio.Redis.from_url(setting.url)
    init_cachify(async_client=client)

    @cached("row-{number}", ttl=TTL)
    async def load(number: int) -> Any:
        return setting.value

    yield Store("py-cachify", load, load, "@cached", miss=load, how_miss="@cached, unprotected")
    await client.aclose()


@asynccontextmanager
async def coredis(setting: Setting) -> AsyncIterator[Store]:
    """coredis, with pickle around it as redis-py has."""
    from coredis import Redis

    async with Redis.from_url(setting.url) as opened:
        client: Any = opened

        async def fill(number: int) -> None:
            await client.set(f"coredis:{number}", pickle.dumps(setting.value), ex=TTL)

        async def hit(number: int) -> Any:
            return pickle.loads(await client.get(f"coredis:{number}"))

        def many(numbers: Any) -> Any:
            names = [f"coredis:{number}" for number in numbers]

            async def read() -> list[Any]:
                return [pickle.loads(each) for each in await client.mget(names)]

            return read

        yield Store("coredis", fill, hit, "GET + pickle.loads", many, how_many="MGET + pickle.loads")


@asynccontextmanager
async def glide(setting: Setting) -> AsyncIterator[Store]:
    """The Rust client of Valkey, with pickle around it as redis-py has."""
    from glide import ExpirySet, ExpiryType, GlideClient, GlideClientConfiguration, NodeAddress

    client: Any = await GlideClient.create(GlideClientConfiguration([NodeAddress("127.0.0.1", setting.port)]))
    expiry = ExpirySet(ExpiryType.SEC, TTL)

    async def fill(number: int) -> None:
        await client.set(f"glide:{number}", pickle.dumps(setting.value), expiry=expiry)

    async def hit(number: int) -> Any:
        return pickle.loads(await client.get(f"glide:{number}"))

    def many(numbers: Any) -> Any:
        names: Any = [f"glide:{number}" for number in numbers]

        async def read() -> list[Any]:
            return [pickle.loads(each) for each in await client.mget(names)]

        return read

    yield Store("valkey-glide", fill, hit, "GET + pickle.loads", many, how_many="MGET + pickle.loads")
    await client.close()


BASE = {"redis-py": redis_py}
PEERS = {
    "aiocache": aiocache,
    "cashews": cashews,
    "py-cachify": py_cachify,
    "coredis": coredis,
    "valkey-glide": glide,
}
OURS = {"cacheguard": guarded("ahit"), "cacheguard, guard.aget": guarded_get}
ALL = {**BASE, "bare streams": bare_streams, **PEERS, **OURS}
AT_ONCE = {**BASE, **PEERS, **OURS}  # the bare streams take one command at a time
TAGGED = {**BASE, "cacheguard": guarded("atags", tags=TAGS)}
SECRET = {**BASE, "cacheguard": guarded("asecret", secret=b"s" * 32)}
NESTED = {**BASE, "cacheguard": guarded("anested", nested=True)}
