"""Whatever a probe meets, there is a next one: nobody else closes the breaker of a server."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from cacheguard.client.circuits import Circuits
from cacheguard.defenses.outage import Outcome
from cacheguard.events import Events
from cacheguard.ports import AnotherServer
from cacheguard.servers.wires import Wires


def wait_for(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)


@pytest.mark.parametrize("error", [AnotherServer(), KeyError("a fault of ours"), OSError("no route")])
def test_a_probe_that_fails_in_an_unforeseen_way_is_not_the_last_one(error: Exception) -> None:
    circuits = Circuits(0.2, Events())
    errors = [error, error]

    def probe(_: str) -> float:
        if errors:
            raise errors.pop()
        return 0.0

    circuits.probe_with(probe)
    circuit = circuits.of("")
    for _ in range(10):
        circuit.leave(circuit.ask_now() if circuit.closed else 0, Outcome.FAILED)
    assert not circuit.closed
    wait_for(lambda: circuit.closed)
    assert errors == []
    circuits.close()


class Restless:
    """A server that is another one each time."""

    asked = 0

    async def send(self, *_: object) -> list[bytes]:
        self.asked += 1
        raise AnotherServer

    def server(self, _: str) -> Restless:
        return self


def test_a_server_that_is_another_one_again_and_again_answers() -> None:
    wires = Wires.__new__(Wires)
    restless: object = Restless()
    wires.blocking = restless  # type: ignore[assignment]  # all that is asked of it is there
    assert wires.ask("") < 1
    assert isinstance(restless, Restless)
    assert restless.asked == 2
