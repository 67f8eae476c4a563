from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

from cacheguard_sqlalchemy import invalidate_on_commit
from tests.support.orm import Listening, Model, without_waiting_for_the_disk
from tests.support.postgres_server import PostgresServer

Url = Callable[[str], str]


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Url:
    """The address of an empty database by the name of a driver's kind: ``"sync"`` or ``"async"``."""
    if request.param == "sqlite":
        drivers = {"sync": "sqlite", "async": "sqlite+aiosqlite"}
        return lambda kind: f"{drivers[kind]}:///{tmp_path}/shop.db"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    drivers = {"sync": "postgresql+psycopg", "async": "postgresql+asyncpg"}
    return lambda kind: f"{drivers[kind]}://postgres@127.0.0.1:{server.port}/postgres"


@pytest.fixture
def engine(database_url: Url) -> Iterator[Engine]:
    engine = without_waiting_for_the_disk(create_engine(database_url("sync")))
    Model.metadata.drop_all(engine)
    Model.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def factory(engine: Engine) -> sessionmaker[Session]:
    return sessionmaker(engine)


@pytest.fixture
def watched(request: pytest.FixtureRequest, guard: Listening, factory: sessionmaker[Session]) -> sessionmaker[Session]:
    """Sessions that are watched for what the test's module names in ``TOUCHED``."""
    invalidate_on_commit(guard, factory, request.module.TOUCHED)
    return factory


@pytest.fixture
def guard() -> Iterator[Listening]:
    with Listening() as guard:
        yield guard
