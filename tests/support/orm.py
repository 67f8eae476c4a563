"""A small database behind an ORM, and guards that write down what they are told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Column, Engine, ForeignKey, MetaData, Table, event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from cacheguard import CacheGuard
from cacheguard_sqlalchemy import outbox_table


class Model(DeclarativeBase):
    metadata = MetaData()


members = Table(
    "members",
    Model.metadata,
    Column("user_id", ForeignKey("users.id"), primary_key=True),
    Column("club_id", ForeignKey("clubs.id"), primary_key=True),
)


class User(Model):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    org_id: Mapped[int | None]
    name: Mapped[str] = mapped_column(default="")
    posts: Mapped[list[Post]] = relationship(back_populates="user", cascade="all, delete-orphan")
    clubs: Mapped[list[Club]] = relationship(secondary=members)


class Post(Model):
    __tablename__ = "posts"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    user: Mapped[User | None] = relationship(back_populates="posts")


class Club(Model):
    __tablename__ = "clubs"
    id: Mapped[int] = mapped_column(primary_key=True)


class Item(Model):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    revision: Mapped[int] = mapped_column()
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "item", "version_id_col": revision}  # noqa: RUF012


class Book(Item):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(ForeignKey("items.id"), primary_key=True)
    title: Mapped[str] = mapped_column(default="")
    __mapper_args__ = {"polymorphic_identity": "book"}  # noqa: RUF012 - the base class says what type it is


OUTBOX = outbox_table(Model.metadata)


def without_waiting_for_the_disk(engine: Engine) -> Engine:
    """*engine*; if it is SQLite, its commits do not wait until they would survive a power failure."""
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def connected(connection: Any, _record: object) -> None:
            connection.execute("PRAGMA synchronous = OFF").close()

    return engine


class Listening(CacheGuard):
    """A guard that keeps what it was told by `apply`, `aapply`, `clear` and by fences, in order."""

    def __init__(self, url: str = "memory://", **options: Any) -> None:
        super().__init__(url, **options)
        self.told: list[set[str]] = []
        self.versions: dict[str, Any] = {}

    def _hear(self, changes: Iterable[Any]) -> list[Any]:
        listed = list(changes)
        self.told.append({each.key or f"#{each.tag}" for each in listed})
        self.versions.update({each.key: each.version for each in listed if each.key})
        return listed

    def apply(self, changes: Iterable[Any], **options: Any) -> int:
        return super().apply(self._hear(changes), **options)

    async def aapply(self, changes: Iterable[Any], **options: Any) -> int:
        return await super().aapply(self._hear(changes), **options)

    def clear(self) -> None:
        self.told.append({"everything"})
        super().clear()

    def heard(self) -> set[str]:
        """What it was told since it was asked last, all together."""
        told, self.told = self.told, []
        return set().union(*told)
