from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.postgres_server import PostgresServer, find_postgres


@pytest.fixture(scope="session")
def _postgres_of_the_session() -> Iterator[PostgresServer]:
    binaries = find_postgres()
    if binaries is None:
        reason = "no postgres and initdb on PATH or in /usr/lib/postgresql/*/bin; install PostgreSQL"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; CI must have it")
        pytest.skip(reason)
    server = PostgresServer(binaries)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def postgres_server(_postgres_of_the_session: PostgresServer) -> PostgresServer:
    _postgres_of_the_session.end_sessions()
    return _postgres_of_the_session
