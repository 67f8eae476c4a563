"""Peers over Redis whose calls block."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.compare.peers.setting import TTL, Setting, Store
from cacheguard import CacheGuard, Policy


@contextmanager
def redis_py(setting: Setting) -> Iterator[Store]:
    """The baseline: what most people write by hand."""
    import redis

    client: Any = redis.Redis.from_url(setting.url)

    def hit(number: int) -> Any:
        return pickle.loads(client.get(f"plain:{number}"))

    def many(numbers: Any) -> Any:
        names = [f"plain:{number}" for number in numbers]
        return lambda: [pickle.loads(each) for each in client.mget(names)]

    def fill(number: int) -> None:
        client.set(f"plain:{number}", pickle.dumps(setting.value), ex=TTL)

    def miss(number: int) -> Any:
        raw = client.get(f"plain:{number}")
        if raw is not None:
            return pickle.loads(raw)
        client.set(f"plain:{number}", pickle.dumps(setting.value), ex=TTL)
        return setting.value

    yield Store("redis", fill, hit, "GET + pickle.loads", many, miss, "MGET + pickle.loads", "GET + SET, unprotected")
    client.close()


@contextmanager
def bare_socket(setting: Setting) -> Iterator[Store]:
    """The limit of this machine: no client at all."""
    wire = socket.create_connection(("127.0.0.1", setting.port))
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(*words: bytes) -> None:
        parts = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        wire.sendall(b"*%d\r\n%b" % (len(words), parts))

    def fill(number: int) -> None:
        ask(b"SET", b"bare:%d" % number, pickle.dumps(setting.value))
        wire.recv(100)

    def hit(number: int) -> Any:
        ask(b"GET", b"bare:%d" % number)
        reply = wire.recv(65_536)
        head, _, body = reply.partition(b"\r\n")
        length = int(head[1:])
        while len(body) < length + 2:
            body += wire.recv(65_536)
        return pickle.loads(body)

    yield Store("python", fill, hit, "socket, GET + pickle.loads: the limit")
    wire.close()


def guarded(name: str, *, nested: bool = False, tags: Any = (), annotated: bool = False, **options: Any) -> Any:
    """An opener of cacheguard with *options*."""

    @contextmanager
    def opener(setting: Setting) -> Iterator[Store]:
        policy = Policy(ttl=TTL, l1=False)
        with CacheGuard(setting.url, namespace=name, policy=policy, operation_timeout=5, **options) as outer:
            guard = outer.namespace("middle").namespace("inner") if nested else outer

            def load(number: int) -> Any:
                return setting.value

            if annotated or isinstance(setting.value, str):
                load.__annotations__["return"] = str if isinstance(setting.value, str) else list[dict[str, Any]]
            cached = guard.cached("row:{number}", tags=tags)(load)

            def many(numbers: Any) -> Any:
                names = [f"row:{number}" for number in numbers]
                return lambda: list(guard.get_many(names).values())

            yield Store("cacheguard", cached, cached, "@guard.cached", many, cached, "guard.get_many", "@guard.cached")

    return opener


@contextmanager
def guarded_get(setting: Setting) -> Iterator[Store]:
    """Reading by key text instead of a decorated function."""
    policy = Policy(ttl=TTL, l1=False)
    with CacheGuard(setting.url, namespace="get", policy=policy, operation_timeout=5) as guard:

        def fill(number: int) -> None:
            guard.set(f"row:{number}", setting.value)

        def miss(number: int) -> Any:
            return guard.get_or_set(f"row:{number}", lambda: setting.value)

        yield Store(
            "cacheguard", fill, lambda number: guard.get(f"row:{number}"), "guard.get",
            miss=miss, how_miss="guard.get_or_set",
        )  # fmt: skip


def _django(alias: str) -> Any:
    """Both of Django's: its own backend, and django-redis."""

    @contextmanager
    def opener(setting: Setting) -> Iterator[Store]:
        import django
        from django.conf import settings

        library = "django" if alias == "core" else "django-redis"
        if alias == "peer":
            import django_redis  # noqa: F401 - the reason to be absent is better here
        if not settings.configured:
            caches = {
                "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": setting.url},
                "peer": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": setting.url},
            }
            settings.configure(CACHES=caches)
            django.setup()
        from django.core.cache import caches as opened

        cache: Any = opened["default" if alias == "core" else "peer"]
        prefix = f"{alias}:"

        def many(numbers: Any) -> Any:
            names = [f"{prefix}{number}" for number in numbers]
            return lambda: list(cache.get_many(names).values())

        yield Store(
            library,
            lambda number: cache.set(f"{prefix}{number}", setting.value, TTL),
            lambda number: cache.get(f"{prefix}{number}"),
            "cache.get",
            many,
            lambda number: cache.get_or_set(f"{prefix}{number}", lambda: setting.value, TTL),
            "cache.get_many",
            "cache.get_or_set, unprotected",
        )
        cache.close()

    return opener


@contextmanager
def flask_caching(setting: Setting) -> Iterator[Store]:
    """Flask-Caching with its Redis backend."""
    from flask import Flask
    from flask_caching import Cache

    app = Flask("bench")
    config = {"CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": setting.url, "CACHE_DEFAULT_TIMEOUT": TTL}
    cache: Any = Cache(app, config=config)
    with app.app_context():

        @cache.memoize()
        def load(number: int) -> Any:
            return setting.value

        def many(numbers: Any) -> Any:
            names = [f"row:{number}" for number in numbers]
            return lambda: cache.get_many(*names)

        yield Store(
            "flask-caching",
            lambda number: cache.set(f"row:{number}", setting.value),
            lambda number: cache.get(f"row:{number}"),
            "cache.get",
            many,
            load,
            "cache.get_many",
            "@cache.memoize, unprotected",
        )


@contextmanager
def dogpile(setting: Setting) -> Iterator[Store]:
    """dogpile.cache with its Redis backend and its distributed lock."""
    from dogpile.cache import make_region

    region: Any = make_region().configure(
        "dogpile.cache.redis",
        expiration_time=TTL,
        arguments={
            "url": setting.url,
            "redis_expiration_time": 2 * TTL,
            "distributed_lock": True,
            "thread_local_lock": False,
        },
    )

    def many(numbers: Any) -> Any:
        names = [f"dogpile:{number}" for number in numbers]
        return lambda: region.get_multi(names)

    yield Store(
        "dogpile.cache",
        lambda number: region.set(f"dogpile:{number}", setting.value),
        lambda number: region.get(f"dogpile:{number}"),
        "region.get",
        many,
        lambda number: region.get_or_create(f"dogpile:{number}", lambda: setting.value),
        "region.get_multi",
        "region.get_or_create, distributed lock",
    )


@contextmanager
def py_cachify(setting: Setting) -> Iterator[Store]:
    """py-cachify around a redis-py client."""
    import redis
    from py_cachify import cached, init_cachify

    client: Any = redis.Redis.from_url(setting.url)
    init_cachify(sync_client=client)

    @cached("row-{number}", ttl=TTL)
    def load(number: int) -> Any:
        return setting.value

    yield Store("py-cachify", load, load, "@cached", miss=load, how_miss="@cached, unprotected")
    client.close()


@contextmanager
def glide(setting: Setting) -> Iterator[Store]:
    """The Rust client of Valkey, with pickle around it as redis-py has."""
    from glide_sync import ExpirySet, ExpiryType, GlideClient, GlideClientConfiguration, NodeAddress

    client: Any = GlideClient.create(GlideClientConfiguration([NodeAddress("127.0.0.1", setting.port)]))
    expiry = ExpirySet(ExpiryType.SEC, TTL)

    def fill(number: int) -> None:
        client.set(f"glide:{number}", pickle.dumps(setting.value), expiry=expiry)

    def many(numbers: Any) -> Any:
        names: Any = [f"glide:{number}" for number in numbers]
        return lambda: [pickle.loads(each) for each in client.mget(names)]

    def miss(number: int) -> Any:
        raw = client.get(f"glide:{number}")
        if raw is not None:
            return pickle.loads(raw)
        fill(number)
        return setting.value

    def hit(number: int) -> Any:
        return pickle.loads(client.get(f"glide:{number}"))

    yield Store(
        "valkey-glide-sync",
        fill,
        hit,
        "GET + pickle.loads",
        many,
        miss,
        "MGET + pickle.loads",
        "GET + SET, unprotected",
    )
    client.close()


TAGS = ("catalogue", "group:{number}")
BASE = {"redis-py": redis_py}
PEERS = {
    "django": _django("core"),
    "django-redis": _django("peer"),
    "flask-caching": flask_caching,
    "dogpile.cache": dogpile,
    "py-cachify": py_cachify,
    "valkey-glide": glide,
}
OURS = {"cacheguard": guarded("hit"), "cacheguard, guard.get": guarded_get}
ANNOTATED = {"cacheguard, annotated": guarded("annotated", annotated=True)}
TAGGED = {**BASE, "cacheguard": guarded("tags", tags=TAGS)}
SECRET = {**BASE, "cacheguard": guarded("secret", secret=b"s" * 32)}
NESTED = {**BASE, "cacheguard": guarded("nested", nested=True)}
EVERYTHING = {**BASE, "cacheguard": guarded("all", nested=True, tags=TAGS, secret=b"s" * 32)}
ALL = {**BASE, "bare socket": bare_socket, **PEERS, **OURS}
