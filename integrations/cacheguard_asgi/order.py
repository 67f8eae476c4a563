"""Where the cache stands among the other middlewares: a look at those whose place matters, and a warning."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from enum import Enum
from typing import Any

from .request import Scope

_log = logging.getLogger("cacheguard.asgi")
_DEEPEST = 100  # middlewares, one inside of the other
_AUTHENTICATION = ("starlette.middleware.authentication", "AuthenticationMiddleware")


class Side(Enum):
    """Where a middleware belongs, seen from the cache."""

    OUTSIDE = "outside"  # it has to run for a hit, too
    INSIDE = "inside"  # the cache has to see what it does to responses


# By module and name of the class; classes derived from one count as well. A middleware that works on either side, such
# as GZipMiddleware, is not here. docs/http-cache.md says why for each.
PLACES: dict[tuple[str, str], tuple[Side, str]] = {
    ("starlette.middleware.sessions", "SessionMiddleware"): (
        Side.INSIDE,
        "its Set-Cookie and Vary: Cookie come after the cache, so a page made from one session can be served to others",
    ),
    ("starsessions.middleware", "SessionMiddleware"): (
        Side.INSIDE,
        "its Set-Cookie comes after the cache, so a page made from one session can be served to others",
    ),
    ("starlette_csrf.middleware", "CSRFMiddleware"): (
        Side.INSIDE,
        "its Set-Cookie comes after the cache, so a page with one visitor's token can be served to others",
    ),
    _AUTHENTICATION: (
        Side.OUTSIDE,
        "it does not run for a hit, so whoever it would reject gets stored pages",
    ),
    ("starlette.middleware.cors", "CORSMiddleware"): (
        Side.OUTSIDE,
        "each Origin has a page of its own, and in older releases of Starlette other sites cannot read stored pages",
    ),
    ("uvicorn.middleware.proxy_headers", "ProxyHeadersMiddleware"): (
        Side.OUTSIDE,
        "the cache makes its keys before the scheme of the visitor's URL is known",
    ),
    ("asgi_correlation_id.middleware", "CorrelationIdMiddleware"): (
        Side.OUTSIDE,
        "the ID of one request is stored with the page and served with every hit",
    ),
}
_SESSIONS = frozenset(key for key in PLACES if key[1] == "SessionMiddleware")


def warn_of_order(cache: object, scope: Scope) -> None:
    """Log a warning for each known middleware that stands on the wrong side of *cache*.

    What is inside is found by the attribute ``app``. What is outside is known only to Starlette and FastAPI, if the
    cache was added by ``add_middleware``.
    """
    within = list(_within(cache))
    inside: list[type] = [type(each) for each in within]
    if within:
        inside += _listed(within[-1])  # the whole application is inside
    for kind, (side, why) in misplaced(_around(type(cache), scope.get("app")), inside).items():
        _log.warning(
            "%s belongs %s of HTTPCacheMiddleware: as it is, %s. Starlette's add_middleware puts each middleware "
            "around those that were added before it",
            kind.__name__,
            side.value,
            why,
        )


def misplaced(outside: list[type], inside: list[type]) -> dict[type, tuple[Side, str]]:
    """The known classes on the wrong side, with the right side and what happens as it is.

    Authentication inside of a session that is inside of the cache is right: it needs the session, and as it reads the
    session, its responses differ by Cookie.
    """
    wrong: dict[type, tuple[Side, str]] = {}
    for kind in outside:
        known = _known(kind)
        if known is not None and PLACES[known][0] is Side.INSIDE:
            wrong[kind] = PLACES[known]
    has_session = False
    for kind in inside:
        known = _known(kind)
        has_session = has_session or known in _SESSIONS
        by_session = has_session and known == _AUTHENTICATION
        if known is not None and PLACES[known][0] is Side.OUTSIDE and not by_session:
            wrong[kind] = PLACES[known]
    return wrong


def _known(kind: type) -> tuple[str, str] | None:
    """The name under which *kind*, or a class that it is derived from, is in the table."""
    names = ((each.__module__, each.__name__) for each in kind.__mro__)
    return next((name for name in names if name in PLACES), None)


def _within(cache: object) -> Iterator[object]:
    """What stands inside of *cache*, from the outermost to the application."""
    each: object = getattr(cache, "app", None)
    for _ in range(_DEEPEST):
        if each is None:
            return
        yield each
        each = getattr(each, "app", None)


def _around(kind: type, app: object) -> list[type]:
    """What stands outside of the first middleware of *kind* in a Starlette application."""
    classes = _listed(app)
    return classes[: classes.index(kind)] if kind in classes else []


def _listed(app: object) -> list[type]:
    """The middlewares that were added to a Starlette application, from the outermost on."""
    listed: Any = getattr(app, "user_middleware", None)
    if not isinstance(listed, list | tuple):
        return []
    every: list[Any] = [*listed]  # pyright: ignore[reportUnknownArgumentType] - any object may have such an attribute
    classes = [getattr(each, "cls", None) for each in every]
    return [each for each in classes if isinstance(each, type)]
