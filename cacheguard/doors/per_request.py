"""What a function says before its first call: does it take what belongs to one request of a web framework?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from inspect import signature, unwrap
from string import Formatter
from typing import Any, get_args

from ..checks import called_function
from ..codec.annotation import bare
from ..codec.names import Names, names_around
from ..codec.registry import annotation_of
from ..errors import ConfigurationError

_INSTEAD = (
    "cache a function that returns the data and call it from the endpoint, or cache whole responses "
    "(cacheguard_asgi.HTTPCacheMiddleware)"
)
_WRITTEN = f"for a hit the function is not called, so what it does to the {{}} is lost; {_INSTEAD}"
_READ = (
    f"what it reads of the {{}} is not part of the key, so one visitor's answer can be another's; take what is needed "
    f"as parameters, name it in the template like '{{{{request.url.path}}}}', or {_INSTEAD}"
)
DEEPEST = 5  # levels of an annotation that are looked at; an alias can contain itself
_ROOT = re.compile(r"[^.\[\]]+")

# By module and name of the class, so that no framework is imported; classes derived from one count as well. The second
# part says what is wrong; True: right if the template names the parameter, since then the user has chosen.
_CLASSES: dict[str, tuple[str, bool]] = {
    "starlette.responses.Response": (_WRITTEN.format("response"), False),
    "starlette.background.BackgroundTask": (_WRITTEN.format("background tasks"), False),
    "starlette.websockets.WebSocket": (_WRITTEN.format("connection"), False),
    "starlette.requests.HTTPConnection": (_READ.format("request"), True),
    "starlette.datastructures.UploadFile": (_READ.format("upload"), True),
    "starlette.datastructures.FormData": (_READ.format("form"), True),
    "fastapi.security.oauth2.SecurityScopes": (_READ.format("scopes"), True),
    "django.http.response.HttpResponseBase": (_WRITTEN.format("response"), False),
    "django.http.request.HttpRequest": (_READ.format("request"), True),
    "werkzeug.sansio.request.Request": (_READ.format("request"), True),
    "werkzeug.sansio.response.Response": (_WRITTEN.format("response"), False),
    "aiohttp.web_request.BaseRequest": (_READ.format("request"), True),
    "litestar.connection.base.ASGIConnection": (_READ.format("request"), True),
}


def refuse_per_request(fn: Callable[..., Any], template: str | None) -> None:
    """Raise `ConfigurationError` if an annotation of *fn* shows a parameter that belongs to one request.

    What frameworks fill in (``Response``, ``BackgroundTasks``, ``Request``, …) is in no key, and a hit does nothing to
    it. A request that the *template* names is taken: the user has chosen what of it counts.
    """
    try:
        parameters = signature(fn).parameters
    except (TypeError, ValueError):
        return
    inner = unwrap(called_function(fn))
    names, named = names_around(inner), _named(template)
    for name, parameter in parameters.items():
        if parameter.annotation is parameter.empty:
            continue
        for kind in _classes(inner, parameter.annotation, names):
            wrong, can_be_named = _told(kind)
            if wrong and not (can_be_named and name in named):
                raise ConfigurationError(
                    f"{getattr(fn, '__qualname__', repr(fn))} takes {name}: {kind.__name__}, which belongs to one "
                    f"request: {wrong}"
                )


def _classes(fn: Any, written: Any, names: Names) -> Iterator[type[Any]]:
    """The classes that *written* allows; none if it cannot be resolved."""
    try:
        annotation = annotation_of(fn, written, names)
    except Exception:  # noqa: BLE001 - an annotation is any expression; what cannot be resolved shows nothing
        return
    yield from _within(annotation, DEEPEST)


def _within(annotation: Any, depth: int) -> Iterator[type[Any]]:
    """The classes in *annotation*: itself, and those of a union or a collection, to a *depth*."""
    kind = bare(annotation)
    if isinstance(kind, type):
        yield kind
    if depth > 0:
        for each in get_args(kind):
            yield from _within(each, depth - 1)


def _told(kind: type[Any]) -> tuple[str, bool]:
    """What is wrong with a parameter of *kind*, and whether a template can name it."""
    for each in kind.__mro__:
        known = _CLASSES.get(f"{each.__module__}.{each.__qualname__}")
        if known is not None:
            return known
    return "", False


def _named(template: str | None) -> set[str]:
    """The parameters that *template* names; what is wrong with it is said elsewhere."""
    try:
        fields = [field for _, field, _, _ in Formatter().parse(template or "") if field]
    except ValueError:
        return set()
    return {found[0] for each in fields if (found := _ROOT.match(each)) is not None}
