"""How connections are made: the settings of a endpoint, with one short timeout and no retries inside the client."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..errors import ConfigurationError
from . import redispy
from .endpoints import Endpoint
from .finders import Finder


def connector(endpoint: Endpoint, retry: Any, *, timeout: float, reply_timeout: float | None) -> Callable[[], Any]:
    """Makes connections to *endpoint* that are ours alone: a client lends its settings, never its connections.

    Raises `ConfigurationError` if the settings make none.

    Args:
        retry: what the client shall do about a failure: nothing, in the colour of the endpoint.
        timeout: seconds for connecting.
        reply_timeout: seconds for each reply, for the client to watch over; None if we do.
    """
    settings = {
        **endpoint.connection_kwargs,
        "socket_timeout": reply_timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 0,
        "decode_responses": False,  # a value is bytes, whatever the user's client makes of its own
        "retry": retry,
    }
    settings.pop("max_connections", None)  # a pool's matter
    settings |= redispy.silence(endpoint.connection_class, settings)
    _check_credentials(settings)
    if isinstance(finder := endpoint.finder, Finder):
        for sentinel in finder.endpoints:
            _check_credentials(sentinel.connection_kwargs)
        settings[redispy.FINDER] = finder.within(timeout)

    def connect() -> Any:
        return endpoint.connection_class(**settings)

    try:
        connect()
    except TypeError as error:
        msg = f"the Redis client does not take these settings: {error}"
        raise ConfigurationError(msg) from error
    return connect


def hint_of(connection: Any, error: BaseException) -> str:
    """What may be wrong where a new connection was cut or ignored before it said anything.

    Of two sides of which one speaks TLS, neither can say so: both hear noise.
    """
    said = f"{type(error).__name__} {error} {error.__cause__}"
    if redispy.is_tls(type(connection)):
        if re.search("Timeout|EOF|reset|closed|lost|WRONG_VERSION", said):
            return " (TLS: the port may not speak it, or want a client certificate: ssl_certfile, ssl_keyfile)"
    elif re.search("reset|closed|lost|Broken pipe|Protocol Error", said):
        return " (the port may speak TLS; a URL for that begins with rediss)"
    return ""


def _check_credentials(settings: dict[str, Any]) -> None:
    """Find out now whether they can be sent: the error of who tried it later would hold a password."""
    encoding, errors = settings.get("encoding") or "utf-8", settings.get("encoding_errors") or "strict"
    for name in ("username", "password"):
        if not _is_encodable(settings.get(name), encoding, errors):
            raise ConfigurationError(f"{name} cannot be encoded: {encoding=}, encoding_errors={errors!r}")


def _is_encodable(text: object, encoding: str, errors: str) -> bool:
    try:
        if isinstance(text, str):
            text.encode(encoding, errors)
    except (UnicodeError, LookupError):
        return False
    return True
