"""What type checkers see of a Flask app that uses `CacheGuardFlask`. Never run, as `api.py` is not."""

# pyright: strict
# pyright: reportUnnecessaryTypeIgnoreComment=true, reportUnusedFunction=false

from __future__ import annotations

from typing import Any, assert_type

from flask import Flask

from cacheguard import CacheGuard
from cacheguard_flask import CacheGuardFlask

app = Flask(__name__)
cache = CacheGuardFlask(app, config={"CACHEGUARD_TTL": "1m"})
assert_type(cache.guard, CacheGuard)


@app.get("/<int:number>")
@cache.cached(timeout="5m", query_string=True, tags=["item:{number}"], stale_while_revalidate="1m")
def view(number: int) -> dict[str, int]:
    return {"number": number}


assert_type(view(1), dict[str, int])
assert_type(view.uncached(1), dict[str, int])
view("1")  # type: ignore[arg-type]
view.cache_timeout = 60
cache.delete_cached(view, "/1")
cache.cached(query_string="yes")  # type: ignore[arg-type]


@cache.memoize(60)
def add(a: int, b: int = 2) -> int:
    return a + b


assert_type(add(1), int)
add("1")  # type: ignore[arg-type]
add.delete_memoized()
cache.delete_memoized(add, 1, b=2)


@cache.memoize()
async def waited(a: int) -> str:
    return str(a)


async def wait() -> None:
    assert_type(await waited(1), str)


class Shop:
    """Something with methods, which are what the decorators of methods and classes make of them."""

    @cache.memoize()
    def price(self, number: int) -> float:
        return number * 1.5

    @classmethod
    @cache.memoize()
    def of_class(cls, number: int) -> float:
        return number * 1.5


price: float = Shop().price(1)
of_class: float = Shop.of_class(1)
cache.delete_memoized(Shop().price, 1)
assert_type(cache.get("k"), Any)
assert_type(cache.add("k", 1, timeout=0), bool)
