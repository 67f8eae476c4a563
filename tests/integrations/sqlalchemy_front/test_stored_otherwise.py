"""The row counts, not what the program gave: types that change a value, and foreign keys that are set late."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import CHAR, ForeignKey, Numeric, String, TypeDecorator, Uuid, create_engine, event, insert, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from cacheguard import CacheGuard
from cacheguard_sqlalchemy import Touches, invalidate_on_commit


class Base(DeclarativeBase): ...


class Lower(TypeDecorator[str]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.lower()


class Identifier(TypeDecorator[uuid.UUID]):
    impl = Uuid
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return value


class Page(Base):
    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int | None] = mapped_column(ForeignKey("authors.id"))


class Author(Base):
    __tablename__ = "authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    mail: Mapped[str | None] = mapped_column(Lower)
    price: Mapped[Any] = mapped_column(Numeric(10, 2, asdecimal=True), nullable=True)
    code: Mapped[uuid.UUID | None] = mapped_column(Identifier)
    short: Mapped[str | None] = mapped_column(CHAR(2))
    best_id: Mapped[int | None] = mapped_column(ForeignKey("pages.id", use_alter=True))
    best: Mapped[Page | None] = relationship(foreign_keys=[best_id], post_update=True)
    pages: Mapped[list[Page]] = relationship(foreign_keys=[Page.author_id], post_update=True)


class Animal(Base):
    __tablename__ = "animals"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(default="animal")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012 - as SQLAlchemy declares it


class Dog(Animal):
    __tablename__ = "dogs"
    id: Mapped[int] = mapped_column(ForeignKey("animals.id"), primary_key=True)
    size: Mapped[int] = mapped_column(default=1)
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012 - as SQLAlchemy declares it


Factory = sessionmaker[Session]


@pytest.fixture
def guard() -> Iterator[CacheGuard]:
    with CacheGuard("memory://") as guard:
        yield guard


@pytest.fixture
def factory(guard: CacheGuard) -> Iterator[Factory]:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    factory = sessionmaker(engine, expire_on_commit=False)
    with factory.begin() as session:
        session.add_all([Author(id=1, mail="ann"), Page(id=1), Page(id=2), Dog(id=1)])
        session.flush()
        session.get_one(Author, 1).best_id = 1
        session.get_one(Page, 1).author_id = 1
    watch = invalidate_on_commit(
        guard,
        factory,
        {
            Author: Touches(keys=["mail:{mail}", "price:{price}", "best:{best_id}", "code:{code}", "short:{short}"]),
            Page: ["by:{author_id}", "page:{id}"],
            Animal: ["animal:{id}"],
        },
    )
    yield factory
    watch.remove()
    engine.dispose()


def best(session: Session) -> None:
    session.get_one(Author, 1).best = session.get_one(Page, 2)


def no_best(session: Session) -> None:
    author = session.get_one(Author, 1)
    session.delete(author.best)
    author.best = None


def another_page(session: Session) -> None:
    author = session.get_one(Author, 1)
    author.pages.append(session.get_one(Page, 2))


def no_page(session: Session) -> None:
    author = session.get_one(Author, 1)
    author.pages.clear()


def mail(session: Session) -> None:
    session.get_one(Author, 1).mail = "BOB"


def new(session: Session) -> None:
    session.add(Author(id=3, mail="CAT", price=Decimal(3)))


def statement(session: Session) -> None:
    session.execute(insert(Author).values(id=4, mail="DAN", price=None, best_id=None, code=None, short=None))


def table_of_a_derived_model(session: Session) -> None:
    session.execute(update(Dog.__table__).values(size=2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (best, ["best:1", "best:2"]),
        (no_best, ["best:1", "best:None"]),
        (another_page, ["by:None", "by:1", "page:2"]),
        (no_page, ["by:1", "by:None", "page:1"]),
        (mail, ["mail:ann", "mail:bob"]),
        (new, ["mail:cat", "price:3.00"]),
        (statement, ["mail:dan"]),
        (table_of_a_derived_model, ["animal:1"]),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_the_names_are_those_of_the_row(
    guard: CacheGuard, factory: Factory, change: Callable[[Session], None], names: list[str]
) -> None:
    for name in names:
        guard.set(name, "old")
    with factory.begin() as session:
        change(session)
    assert [name for name in names if guard.get(name) is not None] == []


def test_an_object_that_outlives_the_commit_does_not_hide_what_its_row_is_called(
    guard: CacheGuard, factory: Factory
) -> None:
    with factory() as session:
        author = session.get_one(Author, 1)
        author.mail, author.price = "BOB", Decimal(3)
        session.commit()
        for name in ("mail:bob", "price:3.00", "price:4.00"):
            guard.set(name, "old")
        author.mail, author.price = "cat", 4
        session.commit()
    assert [guard.get(name) for name in ("mail:bob", "price:3.00", "price:4.00")] == [None] * 3


def test_what_comes_back_as_it_is_is_not_asked_for(factory: Factory) -> None:
    asked: list[str] = []
    with factory() as session:
        author = session.get_one(Author, 1)
        event.listen(session.get_bind(), "before_cursor_execute", lambda *call: asked.append(call[2].split()[0]))
        author.mail, author.code, author.short = "bob", uuid.UUID(int=7), "ab"
        session.commit()
    assert asked == ["UPDATE"]
