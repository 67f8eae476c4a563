"""What may stand behind the question mark of a URL, under the names that redis-py gives it."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ...errors import ConfigurationError

SECRETS = frozenset({"password", "sentinel_password", "ssl_password"})
_YES, _NO = frozenset({"1", "t", "true", "y", "yes", "on"}), frozenset({"0", "f", "false", "n", "no", "off"})


@dataclass(frozen=True)
class _Option:
    """How one option is read.

    Args:
        read: the text as a value; `ValueError` for what is none.
        allowed: what that is, in words.
    """

    read: Callable[[str], Any]
    allowed: str


def _flag(text: str) -> bool:
    if text.lower() not in _YES | _NO:
        raise ValueError
    return text.lower() in _YES


def _number(least: int, most: int) -> _Option:
    def read(text: str) -> int:
        number = int(text)
        if not least <= number <= most:
            raise ValueError
        return number

    return _Option(read, f"a whole number from {least} to {most}")


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


def _one_of(*words: str) -> _Option:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return _Option(read, " or ".join(repr(word) for word in words))


def _verify_flags(text: str) -> list[ssl.VerifyFlags]:
    try:
        return [ssl.VerifyFlags[word.strip()] for word in text.strip("[]").split(",")]
    except KeyError:
        raise ValueError from None


def _tls_version(text: str) -> ssl.TLSVersion:
    try:
        return ssl.TLSVersion[text]
    except KeyError:
        return ssl.TLSVersion(int(text))


_TEXT, _FLAG = _Option(str, "a text"), _Option(_flag, "'yes' or 'no'")
_SECONDS = _Option(_seconds, "a number of seconds above 0")
_FILE, _FOLDER = _Option(str, "a file that can be read"), _Option(str, "a directory")
_VERIFY = _Option(_verify_flags, "names of ssl.VerifyFlags, separated by commas")

_PLAIN: dict[str, _Option] = {
    "username": _TEXT,
    "password": _TEXT,
    "db": _number(0, 2**31 - 1),
    "client_name": _TEXT,
    "lib_name": _TEXT,
    "lib_version": _TEXT,
    "protocol": _number(2, 3),
    "socket_keepalive": _FLAG,
    "socket_read_size": _number(1, 2**31 - 1),
    # Those below are for `new_client` alone: the guard sets them itself, see operation_timeout.
    "socket_timeout": _SECONDS,
    "socket_connect_timeout": _SECONDS,
    "health_check_interval": _number(0, 2**31 - 1),
    "retry_on_timeout": _FLAG,
    "max_connections": _number(1, 2**31 - 1),
    "decode_responses": _FLAG,
    "encoding": _TEXT,
    "encoding_errors": _TEXT,
}
_SENTINEL = {"sentinel_username": _TEXT, "sentinel_password": _TEXT}
_TLS: dict[str, _Option] = {
    "ssl_ca_certs": _FILE,
    "ssl_ca_path": _FOLDER,
    "ssl_ca_data": _TEXT,
    "ssl_certfile": _FILE,
    "ssl_keyfile": _FILE,
    "ssl_password": _TEXT,
    "ssl_cert_reqs": _one_of("required", "optional", "none"),
    "ssl_check_hostname": _FLAG,
    "ssl_min_version": _Option(_tls_version, "a name of ssl.TLSVersion, like 'TLSv1_3'"),
    "ssl_ciphers": _TEXT,
    "ssl_include_verify_flags": _VERIFY,
    "ssl_exclude_verify_flags": _VERIFY,
}


def options_of(query: str, *, tls: bool, sentinel: bool) -> dict[str, Any]:
    """The options of *query*, by name; `ConfigurationError` names one that cannot work, and never quotes a secret.

    Args:
        tls: whether the scheme is one with TLS: without it, options of TLS would be without effect, and are refused.
        sentinel: whether sentinels are asked, who may want a name and a password of their own.
    """
    known = _PLAIN | (_TLS if tls else {}) | (_SENTINEL if sentinel else {})
    found: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        name, equals, text = part.partition("=")
        # A password whose '&' is not percent-encoded goes on as the next option.
        quotable = not SECRETS & found.keys()
        decoded = unquoted(name.replace("+", " ")), unquoted(text.replace("+", " "))
        if None in decoded:
            raise ConfigurationError("url must have options that are UTF-8, percent-encoded")
        name, value = map(str, decoded)
        if name not in known or name in found:
            raise ConfigurationError(_refusal(name, tls=tls, found=found, quotable=quotable and bool(equals)))
        found[name] = _read(known[name], value)
        if found[name] is None:
            came = f", got {value!r}" if quotable and name not in SECRETS else ""
            raise ConfigurationError(f"url option {name} must be {known[name].allowed}{came}")
    if tls:
        _check_files(found)
        _check_context(found)
    return found


def unquoted(text: str) -> str | None:
    """*text* without its percent-encoding; None if that is no UTF-8."""
    # Not raised from here, nor below: an exception that is being handled stays attached, with what it was about.
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return None


def _read(option: _Option, text: str) -> Any:
    """The value, or None."""
    try:
        return option.read(text) if text else None
    except ValueError:
        return None


def _refusal(name: str, *, tls: bool, found: dict[str, Any], quotable: bool) -> str:
    if not (quotable and re.fullmatch(r"[a-zA-Z_]+", name)):  # what looks like no option at all may be a password
        return "url has an option that is not known; in a password, '&' is written %26"
    if name in found:
        return f"url option {name} must be given once"
    if name in _TLS and not tls:
        return f"url option {name} must stand in a URL with TLS: rediss://, rediss+sentinel:// or rediss+cluster://"
    if name in _SENTINEL:
        return f"url option {name} must stand in a URL of sentinels: redis+sentinel:// or rediss+sentinel://"
    known = ", ".join(sorted(_PLAIN | (_TLS if tls else {})))
    return f"url has an option that is not known: {name!r}; there are {known}"


def _check_files(options: dict[str, Any]) -> None:
    for name, kind in (("ssl_ca_certs", _FILE), ("ssl_certfile", _FILE), ("ssl_keyfile", _FILE)):
        if name in options:
            why = _trouble(partial(Path.read_bytes, Path(options[name])))
            if why:
                raise ConfigurationError(f"url option {name} must be {kind.allowed}, got {options[name]!r}: {why}")
    if "ssl_ca_path" in options and not Path(options["ssl_ca_path"]).is_dir():
        raise ConfigurationError(f"url option ssl_ca_path must be {_FOLDER.allowed}, got {options['ssl_ca_path']!r}")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise ConfigurationError("url option ssl_keyfile must have an ssl_certfile beside it")


def _check_context(options: dict[str, Any]) -> None:
    """Do now what each connection will do, so that what cannot work is said at once."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    steps: list[tuple[str, Callable[[], object]]] = []
    authorities = {"cafile": "ssl_ca_certs", "capath": "ssl_ca_path", "cadata": "ssl_ca_data"}
    given = {name: options[option] for name, option in authorities.items() if option in options}
    if given:
        names = ", ".join(authorities[name] for name in given)
        steps.append((f"{names} must be certificates in PEM", lambda: context.load_verify_locations(**given)))
    if "ssl_certfile" in options:
        # Without an answer of ours, the library would ask for a passphrase on the terminal.
        passphrase = options.get("ssl_password", "")
        steps.append((
            "ssl_certfile, ssl_keyfile and ssl_password must fit each other",
            lambda: context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), passphrase),
        ))  # fmt: skip
    if "ssl_ciphers" in options:
        steps.append(("ssl_ciphers must be a list of ciphers", lambda: context.set_ciphers(options["ssl_ciphers"])))
    for what, step in steps:
        why = _trouble(step)
        if why:
            raise ConfigurationError(f"url option {what}, got {why}")


def _trouble(step: Callable[[], object]) -> str:
    """What goes wrong in *step*; nothing if nothing does."""
    try:
        step()
    except (OSError, ValueError, TypeError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None)
        return f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return ""
