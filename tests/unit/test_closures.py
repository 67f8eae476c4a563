"""Without a template, a key is a function's name and its arguments: a function that is more is refused."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from cacheguard import CacheGuard
from cacheguard.errors import KeyTemplateError
from cacheguard.extending import KeyOwner, take_closures
from cacheguard.keys import compile_key


def base(x: int) -> str:
    return "base"


def for_tenant(tenant: str) -> Callable[[Any], Any]:
    def decorate(fn: Any) -> Any:
        @functools.wraps(fn)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return f"{tenant}: {fn(*args, **kwargs)}"

        return wrapper

    return decorate


def without_wraps(fn: Any) -> Any:
    def wrapper(x: int) -> Any:
        return fn(x)

    return wrapper


def without_settings(fn: Any) -> Any:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


@for_tenant("of all")
def decorated(x: int) -> str:
    return "decorated"


class Service:
    def __init__(self, tenant: str = "a") -> None:
        self.tenant = tenant

    def __call__(self, x: int) -> str:
        return self.tenant

    def find(self, x: int) -> str:
        return self.tenant

    @classmethod
    def named(cls, x: int) -> str:
        return cls.__name__


class Derived(Service):
    pass


# What differs


def variable(tenant: Any) -> Any:
    def load(x: int) -> str:
        return f"data of {tenant}"

    return load


def coroutine(tenant: Any) -> Any:
    async def load(x: int) -> str:
        return f"data of {tenant}"

    return load


def wrapped(tenant: Any) -> Any:
    inner = variable(tenant)

    @functools.wraps(inner)
    def load(x: int) -> Any:
        return inner(x)

    return load


def wrapped_often(tenant: Any) -> Any:
    return for_tenant("x")(functools.wraps(base)(wrapped(tenant)))


def helper(tenant: Any) -> Any:
    def find(x: int) -> str:
        return f"{tenant}{x}"

    def load(x: int) -> str:
        return find(x)

    return load


def helpers_default(tenant: Any) -> Any:
    def find(x: int, t: Any = tenant) -> str:
        return f"{t}{x}"

    def load(x: int) -> str:
        return find(x)

    return load


def helpers_keyword_default(tenant: Any) -> Any:
    def find(x: int, *, t: Any = tenant) -> str:
        return f"{t}{x}"

    def load(x: int) -> str:
        return find(x)

    return load


def a_lambda(tenant: Any) -> Any:
    find: Any = lambda x: f"{tenant}{x}"  # noqa: E731 - the kind in question

    def load(x: int) -> str:
        return str(find(x))

    return load


def a_list(tenant: Any) -> Any:
    rows = [tenant]

    def load(x: int) -> Any:
        return rows

    return load


def an_object(tenant: Any) -> Any:
    service = Service(tenant)

    def load(x: int) -> str:
        return service.tenant

    return load


def a_bound_method(tenant: Any) -> Any:
    find = Service(tenant).find

    def load(x: int) -> str:
        return find(x)

    return load


def a_partial(tenant: Any) -> Any:
    find = functools.partial(base, x=tenant)

    def load(x: int) -> str:
        return find()

    return load


def a_class(tenant: Any) -> Any:
    class Local:
        name = tenant

    def load(x: int) -> Any:
        return Local.name

    return load


def a_method_of_a_class(tenant: Any) -> Any:
    class Local:
        @staticmethod
        def name() -> Any:
            return tenant

    def load(x: int) -> Any:
        return Local.name()

    return load


def not_yet(tenant: Any) -> Any:
    def load(x: int) -> Any:
        return later

    compile_key(None, load)
    later = tenant
    return load


def nothing_yet(tenant: Any) -> Any:
    client: Any = None

    def load(x: int) -> Any:
        nonlocal client
        client = client or tenant
        return client

    return load


def another_cached_function(tenant: Any) -> Any:
    @functools.cache
    def find(x: int) -> str:
        return f"{tenant}{x}"

    def load(x: int) -> str:
        return find(x)

    return load


def a_guarded_function(tenant: Any) -> Any:
    with CacheGuard() as guard:

        @guard.cached("find:{x}")
        def find(x: int) -> str:
            return f"{tenant}{x}"

    def load(x: int) -> str:
        return find(x)

    return load


def named_partial(tenant: Any) -> Any:
    return functools.update_wrapper(functools.partial(base, x=tenant), base)


def state_with_a_name(tenant: Any) -> Any:
    return functools.update_wrapper(Service(tenant), base)


def decorator_of_a_function_that_has_its_name(tenant: Any) -> Any:
    return for_tenant(tenant)(base)


DIFFERENT = [
    variable, coroutine, wrapped, wrapped_often, helper, helpers_default, helpers_keyword_default, a_lambda, a_list,
    an_object, a_bound_method, a_partial, a_class, a_method_of_a_class, not_yet, nothing_yet, another_cached_function,
    a_guarded_function, named_partial, state_with_a_name, decorator_of_a_function_that_has_its_name,
]  # fmt: skip


@pytest.mark.parametrize("make", DIFFERENT)
def test_what_a_key_does_not_tell_apart_is_refused_without_a_template(make: Callable[[Any], Any]) -> None:
    with pytest.raises(KeyTemplateError, match="needs a key template such as 'name:"):
        compile_key(None, make("a"))


@pytest.mark.parametrize("make", [each for each in DIFFERENT if each is not not_yet])
def test_with_a_template_the_user_has_said_what_differs(make: Callable[[Any], Any]) -> None:
    assert compile_key("name:{x}", make("a")).text_of(1) == "name:1"


@pytest.mark.parametrize("method", [Service("a").find, [1].count, "text".join])
def test_what_a_method_is_bound_to_is_refused(method: Any) -> None:
    with pytest.raises(KeyTemplateError, match="needs a key template"):
        compile_key(None, method)


def test_the_error_names_what_was_found_and_no_value() -> None:
    with pytest.raises(KeyTemplateError) as caught:
        compile_key(None, helper("secret"))
    assert "find.tenant, of the type str" in str(caught.value)
    assert "'name:{x}'" in str(caught.value)
    assert "secret" not in str(caught.value)


# What does not


def recursive() -> Any:
    def load(x: int) -> int:
        return x if x < 2 else load(x - 1)

    return load


def uses_names() -> Any:
    from textwrap import dedent

    class Missing(Exception):  # noqa: N818
        def __str__(self) -> str:
            return "missing"

    @dataclass
    class Row:
        x: int

    def find(x: int, y: None = None) -> float:
        return math.sqrt(x)

    def load(x: int) -> Any:
        return find(x), dedent("a"), json, base, len, Service, Service.named, Missing, Row(x)

    return load


def uses_cached_functions() -> Any:
    with CacheGuard("memory://") as guard:

        @guard.cached("find:{x}")
        def find(x: int) -> int:
            return x

        @guard.cached()
        @without_settings
        def also(x: int) -> int:
            return find(x)

    def load(x: int) -> int:
        return int(find(x) + also(x))

    return load


def logs() -> Any:
    log = logging.getLogger("shop.prices")

    def load(x: int) -> int:
        log.debug("%s", x)
        return x

    return load


def of_a_super_class() -> Any:
    class Child(Service):
        @classmethod
        def named(cls, x: int) -> str:
            return super().named(x)

    return Child.__dict__["named"].__func__


@pytest.mark.parametrize("make", [recursive, uses_names, logs, uses_cached_functions, of_a_super_class])
def test_what_is_the_same_in_every_process_is_no_obstacle(make: Callable[[], Any]) -> None:
    assert compile_key(None, make()).fields[-1] == "x"
    fields = compile_key(None, make()).fields
    arguments = (Service, 1)[-len(fields) :]
    assert compile_key(None, make()).text_of(*arguments) == compile_key(None, make()).text_of(*arguments)


@pytest.mark.parametrize("fn", [base, decorated, Service.named, json.dumps, math.sqrt])
def test_the_function_of_a_name_needs_no_more(fn: Any) -> None:
    assert "[def" not in compile_key(None, fn).pattern


def test_a_decorator_that_a_module_applies_needs_no_template() -> None:
    scope: dict[str, Any] = {"for_tenant": for_tenant, "__name__": __name__, "seen": []}
    exec("@lambda fn: seen.append(fn) or fn\n@for_tenant('x')\ndef fresh(x): pass", scope)
    key = compile_key(None, scope["seen"][0])
    assert key.text_of(1) == f"{__name__}.fresh(x=i1)"


def test_functions_are_told_apart_by_the_names_that_they_use() -> None:
    one, other = compile_key(None, without_wraps(base)), compile_key(None, without_wraps(decorated))
    assert one.text_of(1) != other.text_of(1)
    assert one.text_of(1) == compile_key(None, without_wraps(base)).text_of(1)


def test_a_default_is_an_argument_and_so_part_of_the_key() -> None:
    def make(tenant: str) -> Any:
        def load(x: int, *, tenant: str = tenant) -> str:
            return tenant

        return load

    with CacheGuard() as guard:
        assert [guard.cached(make(tenant))(1) for tenant in ("a", "b")] == ["a", "b"]


# In the process


def test_two_classes_of_one_name_are_told_apart_or_refused() -> None:
    def make(tenant: str) -> Any:
        class Local:
            name = tenant

            @classmethod
            @guard.cached
            def load(cls, x: int) -> str:
                return cls.name

        return Local

    with CacheGuard() as guard:
        first = make("a")
        assert [first.load(1), first.load(1)] == ["a", "a"]
        with pytest.raises(KeyTemplateError, match="two classes of the name"):
            make("b").load(1)


def test_a_front_takes_one_closure_and_refuses_another_of_the_same_code() -> None:
    with CacheGuard() as guard:
        take_closures(guard)
        assert guard.cached(variable("a"))(1) == "data of a"
        assert guard.cached(variable("a"))(1) == "data of a"
        with pytest.raises(KeyTemplateError, match="another tenant"):
            guard.cached(variable("b"))
        assert guard.namespace("b").cached(variable("b"))(1) == "data of b"
        assert guard.cached("b:{x}")(variable("b"))(1) == "data of b"


def test_a_key_of_a_front_has_one_owner_of_a_code() -> None:
    with CacheGuard() as guard:
        for _ in range(2):
            KeyOwner(variable("a")).claim(guard, "key")
        KeyOwner(variable("b")).claim(guard, "other")
        KeyOwner(helper("b")).claim(guard, "key")
        with pytest.raises(KeyTemplateError, match="another tenant"):
            KeyOwner(variable("b")).claim(guard, "key")
