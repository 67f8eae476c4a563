"""Functions and views that are made inside of factories: each takes one closure, and never another's answer."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from flask import Flask

from cacheguard.errors import KeyTemplateError
from cacheguard_flask import CacheGuardFlask
from tests.integrations.flask.conftest import MakeApp


@pytest.fixture
def app(make_app: MakeApp, extension: CacheGuardFlask) -> Flask:
    return make_app(extension, url="memory://")


def memoized(extension: CacheGuardFlask, tenant: str, **options: Any) -> Any:
    @extension.memoize(**options)
    def work(x: int) -> str:
        return f"data of {tenant}"

    return work


def cached(extension: CacheGuardFlask, tenant: str, key: str = "all") -> Any:
    @extension.cached(key_prefix=key)
    def work() -> str:
        return f"data of {tenant}"

    return work


def of_guard(extension: CacheGuardFlask, tenant: str) -> Any:
    @extension.guard.cached()
    def work(x: int) -> str:
        return f"data of {tenant}"

    return work


@pytest.mark.parametrize(
    ("make", "args"),
    [(memoized, (1,)), (cached, ()), (of_guard, (1,))],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_one_closure_is_taken_and_another_of_the_same_code_refused(
    app: Flask, extension: CacheGuardFlask, make: Any, args: tuple[Any, ...]
) -> None:
    with app.app_context():
        for _ in range(2):
            assert make(extension, "a")(*args) == "data of a"
        with pytest.raises(KeyTemplateError, match="another tenant"):
            make(extension, "b")(*args)
        assert make(extension, "a")(*args) == "data of a"


def test_a_name_or_a_key_of_its_own_tells_them_apart(app: Flask, extension: CacheGuardFlask) -> None:
    with app.app_context():
        for tenant in ("a", "b", "a"):
            name = functools.partial("{1}.{0}".format, tenant)
            assert memoized(extension, tenant, make_name=name)(1) == f"data of {tenant}"
            assert cached(extension, tenant, key=tenant)() == f"data of {tenant}"


def test_each_app_of_a_factory_has_functions_of_its_own(make_app: MakeApp) -> None:
    extension = CacheGuardFlask()

    def create(tenant: str) -> Flask:
        app = make_app(extension, tenant, url="memory://")
        work = memoized(extension, tenant)

        @app.route("/")
        @extension.cached()
        def index() -> str:
            return f"{tenant}: {work(1)}"

        return app

    apps = {tenant: create(tenant) for tenant in ("a", "b")}
    for _ in range(2):
        for tenant, app in apps.items():
            assert app.test_client().get("/").text == f"{tenant}: data of {tenant}"


def test_one_view_of_a_factory_at_several_paths(app: Flask, extension: CacheGuardFlask) -> None:
    def view_of(tenant: str) -> Any:
        @extension.cached()
        def view() -> str:
            return f"page of {tenant}"

        return view

    for tenant in ("a", "b"):
        app.add_url_rule(f"/{tenant}", tenant, view_of(tenant))
    for _ in range(2):
        assert [app.test_client().get(f"/{tenant}").text for tenant in ("a", "b")] == ["page of a", "page of b"]


def test_two_functions_that_take_the_key_of_the_request_are_refused(app: Flask, extension: CacheGuardFlask) -> None:
    with app.test_request_context("/page"):
        assert cached(extension, "a", key="view/%s")() == "data of a"
        with pytest.raises(KeyTemplateError, match="another tenant"):
            cached(extension, "b", key="view/%s")()


def test_a_memoized_function_is_called_as_it_was_called(app: Flask, extension: CacheGuardFlask) -> None:
    def injects(fn: Any) -> Any:
        @functools.wraps(fn)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            seen.append((args, kwargs))
            return fn(*args, **kwargs, service="S")

        return wrapper

    seen: list[Any] = []

    @extension.memoize(tags=["x:{x}"])
    @injects
    def work(x: int, service: str) -> str:
        return f"{x} {service}"

    with app.app_context():
        assert [work(1), work(x=1)] == ["1 S", "1 S"]
        assert seen == [((1,), {})]
        extension.guard.invalidate_tags("x:1")
        assert work(x=1) == "1 S"
        assert seen[1:] == [((), {"x": 1})]
