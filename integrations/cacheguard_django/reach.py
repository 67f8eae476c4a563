"""The database connections that code reaches: those of its thread, and of the thread where a coroutine's queries run.

Django's ORM runs the queries of a coroutine by `asgiref` in a thread: the one that waits in ``async_to_sync``, or one
that belongs to the request. A transaction that is open in that thread is the coroutine's, too.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from asgiref.sync import AsyncToSync, SyncToAsync
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

# Connections by thread. A thread's own are in `connections`, where no other thread can look.
_known: weakref.WeakKeyDictionary[threading.Thread, tuple[weakref.ref[Any], ...]] = weakref.WeakKeyDictionary()
_lock = threading.RLock()


def reached() -> list[Any]:
    """The connections whose transactions the code that runs here reads and writes in. No round trip."""
    found: list[Any] = list(connections.all(initialized_only=True))
    loop = _running_loop()
    if loop is not None:
        for thread in _threads(loop):
            for each in _of(thread):
                if not any(each is one for one in found):
                    found.append(each)
    return found


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _threads(loop: asyncio.AbstractEventLoop) -> Iterator[threading.Thread]:
    """Where ``sync_to_async`` would run a call now, as its ``__call__`` decides; and this thread.

    This thread counts for ``asyncio.run`` inside of ``atomic``.
    """
    yield threading.current_thread()
    executor: Any = getattr(AsyncToSync.executors, "current", None)
    while executor is not None and getattr(executor, "_broken", False):  # its call has ended, this task goes on
        executor = getattr(executor, "_old_executor", None)
    if executor is None:
        context: Any = SyncToAsync.thread_sensitive_context.get(None)
        if context:
            executor = SyncToAsync.context_to_thread_executor.get(context)
        else:
            executor = getattr(AsyncToSync, "loop_thread_executors", {}).get(loop) or SyncToAsync.single_thread_executor
    if executor is None:  # it has no thread yet
        return
    worker = getattr(executor, "_work_thread", None)
    yield from [worker] if worker is not None else list(getattr(executor, "_threads", ()))


def _of(thread: threading.Thread) -> list[Any]:
    return [each for ref in _known.get(thread, ()) if (each := ref()) is not None]


def _note(connection: Any, **_: Any) -> None:
    """Note a connection of this thread."""
    _note_for(threading.current_thread(), connection)


def _note_for(thread: threading.Thread, connection: Any) -> None:
    with _lock:
        mine = _of(thread)
        if not any(each is connection for each in mine):
            _known[thread] = tuple(weakref.ref(each) for each in [*mine, connection])


def _note_all() -> None:
    """Note the connections that are there already: this module may be imported late, by the first use of a cache."""
    threads = {thread.ident: thread for thread in threading.enumerate()}
    for each in gc.get_objects():
        if issubclass(type(each), BaseDatabaseWrapper):
            thread = threads.get(getattr(each, "_thread_ident", None))
            if thread is not None:
                _note_for(thread, each)


connection_created.connect(_note, weak=False, dispatch_uid="cacheguard_django.reach")
_note_all()


def is_ours_alone(connection: Any) -> bool:
    """True in a coroutine for a connection of the very thread that runs it: its own queries may run elsewhere."""
    return _running_loop() is not None and any(each is connection for each in _of(threading.current_thread()))
