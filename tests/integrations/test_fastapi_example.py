"""The shop of examples/fastapi_shop, over real HTTP, with a real Redis, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy import create_engine, insert

from examples.fastapi_shop.models import Model, outbox
from tests.support.postgres_server import PostgresServer
from tests.support.redis_server import RedisServer, is_free, own_ports

ROOT = Path(__file__).parents[2]
# A client reads all certificates of the system when it is made, though nothing here speaks TLS. This one reads none.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
TAKES_AT_MOST = 20.0  # seconds until something that must happen has happened
_numbers = count()


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + TAKES_AT_MOST
    while not holds():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.01)


@contextmanager
def serving(database: str, redis_url: str, **options: Any) -> Iterator[httpx.Client]:
    """The shop on a free port of loopback, in a thread."""
    # FastAPI takes its time to be imported, and most of those who collect this module run nothing of it.
    from examples.fastapi_shop.app import Settings, create_app

    settings = Settings(database, redis_url, **options)
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started and server.servers)
        port = server.servers[0].sockets[0].getsockname()[1]
        # Both answer for one host, as behind a load balancer.
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Host": "shop"}, verify=NO_TLS) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database without tables of the shop."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/shop.db"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    address = f"postgres@127.0.0.1:{server.port}/postgres"
    engine = create_engine(f"postgresql+psycopg://{address}")
    Model.metadata.drop_all(engine)
    engine.dispose()
    return f"postgresql+asyncpg://{address}"


@pytest.fixture
def shops(database: str, redis_url: str) -> Iterator[list[httpx.Client]]:
    """Two processes' worth of the shop, on one database and one Redis."""
    with ExitStack() as stack:
        yield [stack.enter_context(serving(database, redis_url)) for _ in range(2)]


def put_on_sale(shop: httpx.Client, **fields: Any) -> int:
    answer = shop.post("/products", json={"name": f"tea {next(_numbers)}", "category": "drinks", "cents": 400} | fields)
    assert answer.status_code == 201
    number: int = answer.json()["id"]
    return number


def drained(shop: httpx.Client) -> bool:
    return bool(shop.get("/health").json()["outbox"]["rows"] == 0)


def status(answer: httpx.Response) -> str:
    """What the HTTP cache says that it did."""
    return answer.headers["cache-status"].partition("; ")[2].split(";")[0]


def test_a_second_read_costs_neither_a_query_nor_the_application(shops: list[httpx.Client]) -> None:
    shop, other = shops
    product = put_on_sale(shop)
    until(lambda: drained(shop))
    first, second = shop.get(f"/products/{product}"), shop.get(f"/products/{product}")
    assert (
        first.json()
        == second.json()
        == {"id": product, "name": first.json()["name"], "category": "drinks", "cents": 400}
    )
    assert status(first) != "hit"
    assert status(second) == "hit"
    assert "s-maxage=60" in second.headers["cache-control"]
    assert status(other.get(f"/products/{product}")) == "hit", "what one process stored serves all"
    assert shop.get("/health").json()["queries"] == {"product": 1}
    assert other.get("/health").json()["queries"] == {}


def test_a_change_is_seen_by_the_next_read_in_every_process(shops: list[httpx.Client]) -> None:
    shop, other = shops
    product = put_on_sale(shop, name="Tea")
    for each in shops:
        assert each.get(f"/products/{product}").json()["cents"] == 400
        assert [offer["cents"] for offer in each.get("/categories/drinks").json()] == [400]
    changed = {"name": "Tea", "category": "gifts", "cents": 500}
    assert shop.put(f"/products/{product}", json=changed).status_code == 200
    assert shop.get(f"/products/{product}").json() == changed | {"id": product}
    assert shop.get("/categories/drinks").json() == []
    assert shop.get("/categories/gifts").json() == [changed | {"id": product}]
    until(lambda: other.get(f"/products/{product}").json()["cents"] == 500)  # its own memory hears over the bus
    until(lambda: other.get("/categories/drinks").json() == [])


def test_a_bulk_update_is_seen_too(shops: list[httpx.Client]) -> None:
    shop = shops[0]
    products = [put_on_sale(shop), put_on_sale(shop)]
    for product in products:
        shop.get(f"/products/{product}")
    assert shop.post("/categories/drinks/discount", json={"percent": 10}).status_code == 204
    assert [shop.get(f"/products/{product}").json()["cents"] for product in products] == [360, 360]
    assert [offer["cents"] for offer in shop.get("/categories/drinks").json()] == [360, 360]


def test_what_is_removed_is_gone_and_what_comes_back_is_there(shops: list[httpx.Client]) -> None:
    shop = shops[0]
    product = put_on_sale(shop)
    assert shop.get(f"/products/{product}").status_code == 200
    assert shop.delete(f"/products/{product}").status_code == 204
    assert shop.get(f"/products/{product}").status_code == 404
    assert shop.get("/categories/drinks").json() == []
    assert put_on_sale(shop) >= product
    assert shop.put("/products/99", json={"name": "x", "category": "y", "cents": 1}).status_code == 404


def test_a_crowd_costs_one_query(database: str, redis_url: str) -> None:
    with serving(database, redis_url, slowness=0.3) as shop:
        product = put_on_sale(shop)
        until(lambda: drained(shop))
        answers: list[int] = []

        def visit() -> None:
            page = httpx.get(shop.base_url.join(f"/products/{product}"), timeout=30, verify=NO_TLS)
            answers.append(page.status_code)

        threads = [threading.Thread(target=visit) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [200] * 20
        assert shop.get("/health").json()["queries"] == {"product": 1}


def test_the_relay_delivers_what_a_dead_process_left(shops: list[httpx.Client], database: str) -> None:
    shop = shops[0]
    product = put_on_sale(shop)
    until(lambda: drained(shop))
    shop.get(f"/products/{product}")
    assert status(shop.get(f"/products/{product}")) == "hit"
    engine = create_engine(database.replace("+aiosqlite", "").replace("+asyncpg", "+psycopg"))
    with engine.begin() as connection:
        connection.execute(insert(outbox).values(kind="tag", name=f"product:{product}", created_at=time.time()))
    engine.dispose()
    until(lambda: drained(shop))
    until(lambda: status(shop.get(f"/products/{product}")) != "hit")


def test_without_redis_the_shop_goes_on(database: str, redis_url: str, redis_server: RedisServer) -> None:
    with serving(database, redis_url) as shop:
        product = put_on_sale(shop)
        redis_server.kill()
        try:
            assert shop.get(f"/products/{product}").json()["cents"] == 400
            changed = {"name": "x", "category": "y", "cents": 1}
            assert shop.put(f"/products/{product}", json=changed).status_code == 200
            assert shop.get(f"/products/{product}").json() == changed | {"id": product}
            assert not drained(shop), "the outbox keeps what Redis has not heard"
        finally:
            redis_server.start()
        until(lambda: drained(shop))


@pytest.mark.slow
def test_one_command_starts_it_all() -> None:
    port = next(port for port in own_ports()[os.getpid() % 1000 :] if is_free(port))
    environment = {name: value for name, value in os.environ.items() if name not in ("CACHEGUARD_URL", "SHOP_DATABASE")}
    environment |= {"SHOP_PORT": str(port), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'integrations'}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.fastapi_shop"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", verify=NO_TLS) as shop:

            def answers() -> bool:
                assert process.poll() is None, "it has ended"
                try:
                    return shop.get("/health").status_code == 200
                except httpx.TransportError:
                    return False

            until(answers)
            product = put_on_sale(shop)
            assert shop.get(f"/products/{product}").status_code == 200
            assert shop.get("/health").json()["redis"] is True
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=TAKES_AT_MOST)
    assert f"http://127.0.0.1:{port}" in said
    assert not Path(said.split("unix://")[1].strip()).exists(), "nothing is left behind"
