"""What cannot work is refused when it is written down, by its name."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis
import redis.asyncio

from cacheguard import CacheGuard, Policy
from cacheguard.errors import CacheGuardError, ConfigurationError, KeyTemplateError

DURATIONS = [
    "ttl", "null_ttl", "stale_while_revalidate", "stale_if_error",
    "soft_timeout", "hard_timeout", "wait_timeout", "l1_ttl",
]  # fmt: skip
NO_DURATIONS: list[Any] = [
    0, -1, -0.5, 0.0, float("nan"), float("inf"), True, False, "", "soon", "5", "5 m", "-5s", "1h 30m", "5M", b"5s", [],
    timedelta(0), timedelta(-1), ...,
]  # fmt: skip


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("value", NO_DURATIONS, ids=repr)
def test_a_policy_names_the_duration_it_refuses(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name) as caught:
        Policy(**{name: value})  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("value", [1, 0.5, "250ms", "30s", "5m", "1h30m", "2d", timedelta(seconds=1), None], ids=repr)
def test_a_policy_takes_durations_in_every_form(name: str, value: object) -> None:
    Policy(**{name: value})  # type: ignore[arg-type]


WRONG_FIELDS: dict[str, list[Any]] = {
    "jitter": [1, -0.1, 1.5, "0.1", True, float("nan")],
    "not_found": [1, "KeyError", KeyError(), (KeyError, 1), BaseException, int],
    "rebuild": ["eager", None, 1, ""],
    "error_backoff": ["1s", ("1s",), ("5s", "1s"), (0, 1), ("1s", "2s", "3s"), ["1s", "2s"]],
    "l1": [1, 0, "yes", None],
    "l2": [1, 0, "yes", None],
}


@pytest.mark.parametrize(("name", "value"), [(name, each) for name, values in WRONG_FIELDS.items() for each in values])
def test_a_policy_names_the_field_it_refuses(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Policy(**{name: value})  # type: ignore[arg-type]


CONTRADICTIONS: list[tuple[str, dict[str, Any]]] = [
    ("soft_timeout", {"soft_timeout": "2s", "hard_timeout": "1s"}),
    ("soft_timeout", {"soft_timeout": "1s", "hard_timeout": "1s"}),
    ("soft_timeout", {"soft_timeout": "30s"}),
    ("l2", {"l1": False, "l2": False}),
]


@pytest.mark.parametrize(("name", "options"), CONTRADICTIONS)
def test_fields_that_contradict_each_other_are_refused_wherever_they_meet(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=name):
        CacheGuard("memory://", policy=Policy(**options))
    with CacheGuard("memory://") as guard:
        for ask in (
            lambda: guard.namespace("n", policy=Policy(**options)),
            lambda: guard.cached("k", **options),
            lambda: guard.get_or_set("k", lambda: 1, **options),
            lambda: guard.set("k", 1, **options),
        ):
            with pytest.raises(ConfigurationError, match=name):
                ask()


WRONG_OPTIONS: dict[str, list[Any]] = {
    "l1_size": [0, -1, 1.5, True, "10", None],
    "l1_max_bytes": [0, -1, 1.5, True, "10"],
    "l1_eviction": ["mru", None, "LRU", 1],
    "l1_copy": [1, "yes", None],
    "serializer": [1, "pickle", object()],
    "secret": ["text", b"", b"short", [], ["text"], 1],
    "max_value_bytes": [0, -1, 1.5, True, "10", None],
    "compression": ["gzip", 1, "", True],
    "compress_above": [-1, 1.5, True, "1", None],
    "operation_timeout": [0, -1, True, "soon", None],
    "max_loads": [0, -1, 1.5, True, "10", None],
    "load_wait": [0, -1, True, "soon", None],
    "max_absences": [0, -1, 1.5, True, "10", None],
    "on_unreachable": ["ignore", None, True],
    "namespace": ["", 1, None, "x" * 101],
    "policy": [{}, {"ttl": 1}, "5m"],
    "client": [1, object()],
    "aclient": [1, object()],
}


@pytest.mark.parametrize(("name", "value"), [(name, each) for name, values in WRONG_OPTIONS.items() for each in values])
def test_a_guard_names_the_option_it_refuses(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name):
        CacheGuard(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url",
    [
        "http://x", "x", "redis", "redis:/", "redis//localhost", "postgres://x", "redis://localhost:port/0",
        "redis://localhost:99999", "redis://localhost/db", "redis://localhost/-1", "redis://h?socket_timeout=soon", 1, b"redis://h",
    ],
)  # fmt: skip
def test_an_address_that_cannot_work_is_refused(url: Any) -> None:
    with pytest.raises(ConfigurationError, match="url"):
        CacheGuard(url)


def test_an_option_in_an_address_that_no_client_knows_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="nonsense"):
        CacheGuard("redis://localhost?nonsense=1")


def test_a_refused_address_does_not_show_its_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        CacheGuard("http://user:s3cret@host")
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        CacheGuard("redis://user:s3cret@host:port")
    assert "s3cret" not in str(caught.value)


def test_clients_of_the_wrong_colour_or_beside_an_address_are_refused() -> None:
    client, aclient = redis.Redis(), redis.asyncio.Redis()
    for name, options in {
        "client": {"client": aclient},
        "aclient": {"aclient": client},
        "URL": {"url": "redis://x", "client": client},
    }.items():
        with pytest.raises(ConfigurationError, match=name):
            CacheGuard(**options)  # type: ignore[arg-type]
    client.close()


def plain(user_id: int, org_id: int = 0) -> int:
    return user_id


async def waiting(user_id: int) -> int:
    return user_id


WRONG_DECORATIONS: list[tuple[str, Callable[[Any], Any]]] = [
    ("nobody", lambda guard: guard.cached("user:{nobody}")(plain)),
    ("user_id", lambda guard: guard.cached("user:{nobody}")(plain)),
    ("nobody", lambda guard: guard.cached("user:{user_id}", tags=["org:{nobody}"])(plain)),
    ("tags", lambda guard: guard.cached("user:{user_id}", tags="org")(plain)),
    ("tags", lambda guard: guard.cached("user:{user_id}", tags=[1])(plain)),
    ("template", lambda guard: guard.cached("user:{user_id")(plain)),
    ("template", lambda guard: guard.cached("user:user_id}")(plain)),
    ("template", lambda guard: guard.cached("user:{}")(plain)),
    ("template", lambda guard: guard.cached("user:{0}")(plain)),
    ("key", lambda guard: guard.cached("")(plain)),
    ("key", lambda guard: guard.cached(7)(plain)),
    ("tll", lambda guard: guard.cached("user:{user_id}", tll="5m")(plain)),
    ("ttl", lambda guard: guard.cached("user:{user_id}", ttl=0)(plain)),
    ("validate", lambda guard: guard.cached("user:{user_id}", validate=7)(plain)),
    ("validate", lambda guard: guard.cached("user:{user_id}", validate=waiting)(plain)),
    ("validate", lambda guard: guard.cached("user:{user_id}", validate=lambda: True)(plain)),
    ("validate", lambda guard: guard.cached("user:{user_id}", validate=lambda user_id: True)(plain)),
    ("bloom", lambda guard: guard.cached("user:{user_id}", bloom="users")(plain)),
    ("bloom_item", lambda guard: guard.cached("user:{user_id}", bloom=guard.bloom("u", capacity=10))(plain)),
    ("bloom_item", lambda guard: guard.cached("user:{user_id}", bloom_item="{user_id}")(plain)),
    ("nobody", lambda guard: guard.cached("u", bloom=guard.bloom("u", capacity=10), bloom_item="{nobody}")(plain)),
    ("bloom_item", lambda guard: guard.cached("u", bloom=guard.bloom("u", capacity=10), bloom_item="user")(plain)),
    ("capacity", lambda guard: guard.bloom("u", capacity=0)),
    ("capacity", lambda guard: guard.bloom("u", capacity=2**40)),
    ("capacity", lambda guard: guard.bloom("u", capacity=True)),
    ("error_rate", lambda guard: guard.bloom("u", capacity=10, error_rate=0)),
    ("error_rate", lambda guard: guard.bloom("u", capacity=10, error_rate=1)),
    ("error_rate", lambda guard: guard.bloom("u", capacity=10, error_rate=float("nan"))),
    ("name", lambda guard: guard.bloom("", capacity=10)),
    ("namespace", lambda guard: guard.namespace("")),
    ("policy", lambda guard: guard.namespace("n", policy={})),
    ("function", lambda guard: guard.cached("k")(7)),
    ("function", lambda guard: guard.cached("k")(None)),
]


@pytest.mark.parametrize(
    ("name", "decorate"), WRONG_DECORATIONS, ids=[f"{name}-{at}" for at, (name, _) in enumerate(WRONG_DECORATIONS)]
)
def test_a_decoration_that_cannot_work_is_refused_by_name(name: str, decorate: Callable[[CacheGuard], Any]) -> None:
    with CacheGuard("memory://") as guard, pytest.raises(ConfigurationError, match=name):
        decorate(guard)


def test_a_template_error_is_a_configuration_error() -> None:
    with CacheGuard("memory://") as guard, pytest.raises(KeyTemplateError, match="nobody"):
        guard.cached("user:{nobody}")(plain)
    assert issubclass(KeyTemplateError, ConfigurationError)
    assert issubclass(ConfigurationError, (CacheGuardError, ValueError))


class Plain:
    pass


def test_arguments_with_a_default_repr_need_a_template() -> None:
    with CacheGuard("memory://") as guard:

        @guard.cached()
        def anything(value: object) -> int:
            return 1

        with pytest.raises(KeyTemplateError, match="value"):
            anything(Plain())
        with pytest.raises(KeyTemplateError, match="thing"):

            @guard.cached()
            def stated(thing: Plain) -> int:
                return 1

        @guard.cached("of:{value}")
        def templated(value: object) -> int:
            return 1

        with pytest.raises(KeyTemplateError, match="value"):
            templated(Plain())


def test_lambdas_and_generators_are_refused_where_they_cannot_work() -> None:
    with CacheGuard("memory://") as guard:
        with pytest.raises(ConfigurationError):
            guard.cached()(lambda a: a)
        assert guard.cached("l:{a}")(lambda a: a)(1) == 1
        with pytest.raises(ConfigurationError, match="generator"):

            @guard.cached("g")
            def generator() -> Any:
                yield 1

        with pytest.raises(ConfigurationError, match="generator"):

            @guard.cached("ag")
            async def async_generator() -> Any:
                yield 1


def test_an_unknown_option_of_a_call_is_refused() -> None:
    with CacheGuard("memory://") as guard:
        for ask in (
            lambda: guard.get_or_set("k", lambda: 1, tll=1),  # type: ignore[call-arg]
            lambda: guard.set("k", 1, tll=1),  # type: ignore[call-arg]
            lambda: guard.touch("k", tll=1),  # type: ignore[call-arg]
            lambda: guard.get_or_set_many(["k"], dict.fromkeys, tll=1),  # type: ignore[call-arg]
        ):
            with pytest.raises(ConfigurationError, match="tll"):
                ask()
