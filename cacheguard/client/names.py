"""Host names, resolved within a time: the system's resolver knows no timeout of ours."""

from __future__ import annotations

import socket
import threading
from ipaddress import ip_address
from typing import Any

from redis.exceptions import TimeoutError as RedisTimeoutError

from . import redispy


def resolve_within(connection: Any, seconds: float) -> None:
    """Have the host of *connection* resolved, in a thread of its own, so that the client finds it at once.

    Raises the client's `TimeoutError` if that takes longer than *seconds*, and what the resolver raises. Nothing is
    done for addresses, sockets of the file system, and hosts that are only known when one connects (Sentinel).
    """
    host, port = redispy.address_of(connection)
    if not isinstance(host, str) or not host or host == "localhost" or redispy.finder_of(connection) is not None:
        return
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        pass
    else:
        return
    failed: list[OSError] = []
    done = threading.Event()

    def resolve() -> None:
        try:
            socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
        except OSError as error:
            failed.append(error)
        finally:
            done.set()

    threading.Thread(target=resolve, name="cacheguard-name", daemon=True).start()
    if not done.wait(seconds):
        raise RedisTimeoutError(f"to resolve {host} took longer than {seconds:g} s")
    if failed:
        raise failed[0]
