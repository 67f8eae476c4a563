"""What is tried again while the server turns out to be another one."""

from __future__ import annotations

import pytest

from cacheguard.errors import Unreachable
from cacheguard.ports import CHANGES, AnotherServer, until_steady
from cacheguard.runtime import run_now


class Changing:
    """A call that meets another server so many times."""

    def __init__(self, times: int) -> None:
        self.left, self.tries = times, 0

    async def __call__(self) -> str:
        self.tries += 1
        self.left -= 1
        if self.left >= 0:
            raise AnotherServer
        return "answer"


def test_a_call_is_tried_again_on_the_new_server() -> None:
    call = Changing(CHANGES - 1)
    assert run_now(until_steady(call)) == "answer"
    assert call.tries == CHANGES


@pytest.mark.parametrize("failed", [0, 1])
def test_servers_that_go_on_changing_are_an_outage(failed: int) -> None:
    call = Changing(CHANGES)
    with pytest.raises(Unreachable, match=f"another one {CHANGES} times in a row"):
        run_now(until_steady(call, failed=failed))
    assert call.tries == CHANGES - failed
