"""Converts the user's `target` into one that SQLAlchemy's events take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

from sqlalchemy.orm import Session, scoped_session, sessionmaker

from cacheguard.errors import ConfigurationError

from .doors import asyncio_extension

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker

    SessionOrFactory: TypeAlias = (
        type[Session | AsyncSession]
        | Session
        | sessionmaker[Any]
        | scoped_session[Any]
        | AsyncSession
        | async_sessionmaker[Any]
        | async_scoped_session[Any]
    )


def watched(target: Any) -> Any:
    """The target of SQLAlchemy's events for *target*."""
    asynchronous = asyncio_extension()
    if asynchronous is not None:
        if isinstance(target, asynchronous.async_scoped_session):
            target = target.session_factory
        if isinstance(target, asynchronous.async_sessionmaker):
            # All factories share one class of sessions; from now on this one has its own.
            own = _own_class(target.kw.get("sync_session_class") or target.class_.sync_session_class)
            target.configure(sync_session_class=own)
            return own
        if isinstance(target, asynchronous.AsyncSession):
            return target.sync_session
        if isinstance(target, type) and asynchronous.AsyncSession in target.__mro__[1:]:
            derived: Any = target
            derived.sync_session_class = _own_class(derived.sync_session_class)
            return derived.sync_session_class
    if isinstance(target, scoped_session):
        target = cast("Any", target).session_factory
    if isinstance(target, sessionmaker | Session) or (isinstance(target, type) and issubclass(target, Session)):
        return cast("Any", target)
    raise ConfigurationError(
        "target must be a sessionmaker, an async_sessionmaker, a scoped session, a class of sessions, or a session, "
        f"got {target!r}"
    )


def _own_class(watched: type) -> type:
    return type(watched.__name__, (watched,), {})
