"""The buses of several nodes: what they prove together about the one in-process tier behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from ..delivery.bus import PATIENCE, Bus
from ..tiers.held import DEAD

if TYPE_CHECKING:
    from ..ports import Runtime
    from ..tiers.local import Local


class Trust:
    """What the buses of several nodes prove together about the in-process tier.

    It may answer as long as each node's bus is proven, or that node is away. Who has lost one bus closes it; when that
    bus is back, only what came from its node has to go.
    """

    def __init__(self, local: Local, names: Iterable[str]) -> None:
        self._local = local
        self._until = dict.fromkeys(names, DEAD)
        self.concerns: Callable[[str, str], bool] = _all

    def of(self, name: str) -> Share:
        """What the bus of one node has a say in."""
        return Share(self, name)

    def set(self, name: str, until: float) -> None:
        """A node's bus is proven until then."""
        with self._local.lock:  # between the look at the others and the word to the tier, none of them may pause it
            self._until[name] = until
            self._local.trust(min(self._until.values()))

    def pause(self, name: str) -> None:
        """Something may have gone unheard in that node."""
        with self._local.lock:
            self._until[name] = DEAD
            self._local.pause()

    def drop(self, name: str) -> None:
        """Forget what that node may have changed."""
        self._local.drop_shared(partial(self.concerns, name))

    def reset(self) -> None:
        """No bus is proven."""
        self._until = dict.fromkeys(self._until, DEAD)


class Share:
    """The in-process tier, as the bus of one node may treat it."""

    def __init__(self, trust: Trust, name: str) -> None:
        self._trust, self._name = trust, name

    def pause(self) -> None:
        self._trust.pause(self._name)

    def drop_shared(self) -> None:
        self._trust.drop(self._name)

    def trust(self, until: float) -> None:
        self._trust.set(self._name, until)


def _all(_name: str, _key: str) -> bool:
    return True


class Buses:
    """The buses of several nodes, for who waits until it is known whether the in-process tier can be used."""

    def __init__(self, buses: Iterable[Bus]) -> None:
        self._buses = tuple(buses)

    @property
    def ready(self) -> bool:
        """Whether that is known of each."""
        return all(bus.ready for bus in self._buses)

    @property
    def hears(self) -> bool:
        """True while each of them provably hears."""
        return all(bus.hears for bus in self._buses)

    def note(self, name: str) -> None:
        """As `Bus.note`, whichever node it lies on."""
        for bus in self._buses:
            bus.note(name)

    def listen(self) -> None:
        """Begin to listen to all of them, unless that has begun."""
        for bus in self._buses:
            bus.listen()

    async def begin_listening(self, runtime: Runtime) -> None:
        """Begin to listen, and wait until it is known whether that works, but not longer than for one."""
        self.listen()
        until = runtime.now() + PATIENCE
        for bus in self._buses:
            await bus.begin_listening(runtime, max(0.0, until - runtime.now()))
