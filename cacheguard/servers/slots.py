"""Who owns which slot of a cluster, and which call goes to whom."""

from __future__ import annotations

import random
import threading
import time
from binascii import crc_hqx
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..client import redispy
from ..client.endpoints import Address, Endpoint
from ..client.identity import Identity
from ..errors import Refused, Unreachable
from ..faults import Fault
from ..ports import Call, PartlyUnreachable, Reply, ScriptCall

SLOTS = 16384
AGAIN_AFTER = 0.1  # seconds, before the nodes are asked once more who is in the place of one that is silent
# What a script meets that has removed a key whose slot is being moved away: begun again, it is sent on.
NOT_HERE = "non local key"
FIRST = "tagged"  # the script that makes a note of what follows
WORDS_OF_A_NODE = 2  # host and port; its id and more may follow
_ASKING: Call = ("ASKING",)
_TIME: Call = ("TIME",)


@dataclass(frozen=True, slots=True)
class _Told:
    """What a node has answered to CLUSTER SLOTS.

    Args:
        owners: by slot.
        ids: of the masters, which they keep when their address changes.
        replicas: of each master.
    """

    owners: list[Address | None]
    ids: dict[Address, bytes]
    replicas: dict[Address, tuple[Address, ...]]


class Map:
    """Who owns which slot, as it was heard last; shared by the threads and the event loops of one guard.

    Args:
        endpoint: its nodes are asked while no others are known.
        identity: is told when a slot has another owner.
    """

    def __init__(self, endpoint: Endpoint, identity: Identity) -> None:
        self._endpoint, self._identity = endpoint, identity
        self.owners: list[Address | None] = [None] * SLOTS
        self.masters: tuple[Address, ...] = ()
        self.replicas: dict[Address, tuple[Address, ...]] = {}
        self.version: int = 0
        self.heard_at: float = float("-inf")
        self._ids: dict[Address, bytes] = {}
        self._lock = threading.RLock()

    def after_fork(self) -> None:
        self._lock = threading.RLock()

    def candidates(self, routing: Routing | None) -> list[Address]:
        """Those that may know, the likeliest first; at the end those that did not answer just now."""
        known = [*random.sample(self.masters, len(self.masters)), *self._endpoint.nodes]
        if routing is not None:
            known.sort(key=lambda address: address in routing.silent)
            if routing.hint is not None:
                known.insert(0, routing.hint)
        return list(dict.fromkeys(known))

    def known(self) -> set[Address]:
        """The nodes that may still be of use: those that own something, and those that the user has named."""
        return {*self.masters, *self._endpoint.nodes}

    def worth_asking(self, routing: Routing) -> bool:
        """Whether the nodes may say something else now than they did a moment ago."""
        return routing.hint is not None or time.monotonic() >= self.heard_at + AGAIN_AFTER

    def learn(self, asked: Address, reply: Reply) -> None:
        """Take in what *asked* has answered to CLUSTER SLOTS.

        Raises `Refused` if it knows of no slots.
        """
        told = self._read(asked, reply)
        with self._lock:
            lossy = _may_have_lost(self.owners, self._ids, told)
            # A slot that this node does not mention keeps its owner: a cluster that is partly down still serves the
            # rest, and whoever asks for that slot finds out for himself.
            self.owners = [new or old for old, new in zip(self.owners, told.owners, strict=True)]
            self.masters = tuple(dict.fromkeys(owner for owner in self.owners if owner is not None))
            self._ids = {address: told.ids.get(address) or self._ids.get(address, b"") for address in self.masters}
            self.replicas = told.replicas
            self.version += 1
            self.heard_at = time.monotonic()
            if lossy:
                # Last, so that whoever repeats what may be lost finds the new owner.
                self._identity.changed()

    def _read(self, asked: Address, reply: Reply) -> _Told:
        owners: list[Address | None] = [None] * SLOTS
        ids: dict[Address, bytes] = {}
        replicas: dict[Address, tuple[Address, ...]] = {}
        for begin, end, master, *others in reply:
            address = self.address(master[0], master[1], asked)
            # A server that tells no ids is known by its address.
            ids[address] = bytes(master[2]) if len(master) > WORDS_OF_A_NODE else str(address).encode()
            replicas[address] = tuple(self.address(each[0], each[1], asked) for each in others)
            owners[begin : end + 1] = [address] * (end + 1 - begin)
        if not ids:
            raise Refused(f"{asked[0]}:{asked[1]} knows of no slots: the cluster is not set up")
        return _Told(owners, ids, replicas)

    def address(self, host: Any, port: Any, asked: Address) -> Address:
        """Where a node is that *asked* has named; without a host, it is where *asked* is."""
        name = host.decode() if isinstance(host, bytes) else host
        found = (name if name and name != "?" else asked[0], int(port))
        return self._endpoint.remap(found) if self._endpoint.remap is not None else found


def _may_have_lost(owners: list[Address | None], ids: dict[Address, bytes], told: _Told) -> bool:
    """Whether a slot has a new owner who may not have all that the old one had acknowledged.

    Masters are compared by their ids: one that has only got a new address is the same one.
    """
    pairs = {(old, new) for old, new in zip(owners, told.owners, strict=True) if old and new and old != new}
    # A master that hands a slot to another one hands over what is in it: nothing is lost as long as both are still
    # there. Where the old one is gone, or the new one was not known before, it may have been a failover, and what the
    # replica that took over had not yet heard of is lost.
    stay = set(ids.values()) & set(told.ids.values())
    moves = {(ids.get(old), told.ids.get(new)) for old, new in pairs}
    return any(old != new and not (old in stay and new in stay) for old, new in moves)


class Spread:
    """Calls about keys of several nodes, taken apart into calls that each go to one node.

    Each key of an ``MGET`` is asked for by itself. ``TIME`` is asked of every node, behind all that it is asked.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self._whole = calls
        self._is_apart = self.timed = False
        self.calls: list[Call] = []
        for call in calls:
            if isinstance(call, ScriptCall):
                self.calls.append(call)
            elif call[0] == "MGET":
                self._is_apart = True
                self.calls += [("GET", key) for key in call[1:]]
            elif call[0] == "TIME":
                self._is_apart = self.timed = True
            else:
                self.calls.append(call)

    def joined(self, replies: Sequence[Reply], times: Mapping[str, Reply]) -> list[Reply]:
        """The replies to the calls as they were."""
        if not self._is_apart:
            return list(replies)
        left = iter(replies)
        whole: list[Reply] = []
        for call in self._whole:
            if isinstance(call, ScriptCall) or call[0] not in {"MGET", "TIME"}:
                whole.append(next(left))
            elif call[0] == "MGET":
                whole.append([next(left) for _ in call[1:]])
            else:
                whole.append(times)
        return whole


class Routing:
    """Calls on their way, and what became of them.

    A node gets its calls in their order. Between nodes there is none, except where the protocol rests on it: notes
    come before the rest, and questions that stand behind scripts are asked when these are through.
    """

    calls: Sequence[Call]

    def __init__(self, calls: Sequence[Call], owners: Map) -> None:
        self._spread = Spread(calls)
        self.calls, self._map = self._spread.calls, owners
        self.replies: list[Reply] = [None] * len(self.calls)
        self._times: dict[str, Reply] = {}
        self._anywhere: Address | None = None
        self.again: list[int] = []  # calls that have to be repeated
        self.silent: dict[Address, Unreachable] = {}  # nodes that did not answer
        self.hint: Address | None = None  # a node that may know more
        self.asked: list[tuple[Address, int]] = []  # calls that another node has to be asked for, this once
        self._named: dict[int, Address] = {}  # calls for which a node has named another
        self._repeated: set[int] = set()  # calls that were refused by the cluster once
        self._lost: dict[int, Unreachable] = {}  # calls for which nobody could be asked

    def stages(self) -> list[list[int]]:
        """The indices of the calls, stage after stage."""
        stages: tuple[list[int], list[int], list[int]] = ([], [], [])
        scripts = False
        for index, call in enumerate(self.calls):
            if isinstance(call, ScriptCall):
                scripts = True
                stages[call.script.name != FIRST].append(index)
            else:
                stages[2 if scripts else 1].append(index)
        used = [stage for stage in stages if stage]
        if len(used) > 1 and len(self.routes(range(len(self.calls)))) == 1:
            return [list(range(len(self.calls)))]
        return used

    def routes(self, indices: Sequence[int]) -> dict[Address, list[int]]:
        """Which node gets which calls; those that no node takes are given up."""
        routes: dict[Address, list[int]] = {}
        for index in indices:
            owner = self._named.get(index) or self._owner(self.calls[index])
            if owner is None:
                self._lost[index] = Unreachable("no node of the cluster owns this slot")
            elif owner in self.silent:
                self._lost[index] = self.silent[owner]
            else:
                routes.setdefault(owner, []).append(index)
        return routes

    def _owner(self, call: Call) -> Address | None:
        if not isinstance(call, ScriptCall) and call[0] == "PUBLISH":
            if self._anywhere is None:
                able = [address for address in self._map.masters if address not in self.silent]
                self._anywhere = random.choice(able or self._map.masters)
            return self._anywhere
        return self._map.owners[slot_of(_key_of(call).encode("utf-8", "surrogateescape"))]

    def of(self, indices: Sequence[int]) -> list[Call]:
        """The calls for one node."""
        calls = [self.calls[index] for index in indices]
        return [*calls, _TIME] if self._spread.timed else calls

    def next_routes(self) -> dict[Address, list[int]]:
        """Which node gets which of the calls that are to be made now; a node that was silent once gets no more."""
        again, self.again = sorted(self.again), []
        return self.routes(again)

    def failed(self, node: Address, indices: Sequence[int], error: Unreachable) -> None:
        """A node did not answer."""
        self.again += indices
        self.silent[node] = error
        for index in indices:
            self._named.pop(index, None)
        if self._anywhere == node:
            self._anywhere = None

    def give_up(self) -> None:
        """Nothing more is tried for what is still to be repeated; what else there is goes on."""
        for index in self.again:
            self._lost[index] = Unreachable(f"the nodes of the cluster send us on and on: {self.replies[index]}")
        self.again = []

    def result(self) -> list[Reply]:
        """The answers; `PartlyUnreachable` if there is not one for each call."""
        if self._lost:
            replies = [self._lost.get(index, reply) for index, reply in enumerate(self.replies)]
            raise PartlyUnreachable(self._spread.joined(replies, self._times), next(iter(self._lost.values())))
        return self._spread.joined(self.replies, self._times)

    def answered(self, node: Address, indices: Sequence[int], replies: Sequence[Reply]) -> None:
        """A node has answered what `of` gave for it, perhaps with the name of another."""
        if self._spread.timed:
            *replies, time = replies
            self._times |= {_key_of(self.calls[index]): time for index in indices}
        for index, reply in zip(indices, replies, strict=True):
            self.replies[index] = reply
            if not isinstance(reply, Refused):
                continue
            sent_on = redispy.redirection_of(reply.__cause__)
            if sent_on is not None:
                word, target = sent_on
                address = self._map.address(*target, node)
                if word == "MOVED":
                    self.hint = self._named[index] = address
                    self.again.append(index)
                else:
                    self.asked.append((address, index))
            elif NOT_HERE in str(reply):
                self.again.append(index)
            elif reply.fault in (Fault.CLUSTER_DOWN, Fault.READONLY):
                self._named.pop(index, None)
                if index in self._repeated:
                    self._lost[index] = Unreachable(str(reply))
                else:
                    self._repeated.add(index)
                    self.again.append(index)

    def detours(self) -> list[tuple[Address, int]]:
        """The calls that a node has sent on to the one which is about to take over."""
        asked, self.asked = self.asked, []
        return asked

    def no_more_detours(self) -> None:
        """Whoever was sent on once more begins at the beginning."""
        self.again += [index for _, index in self.detours()]

    def asking(self, index: int) -> list[Call]:
        """A call to a node that is about to take over its slot."""
        call = self.calls[index]
        if isinstance(call, ScriptCall):  # with its text: a second try would have to ask once more
            call = ("EVAL", call.script.source, len(call.keys), *call.keys, *call.args)
        return [_ASKING, call, _TIME] if self._spread.timed else [_ASKING, call]


def _key_of(call: Call) -> str:
    key: Any = call.keys[0] if isinstance(call, ScriptCall) else call[1]
    return key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else str(key)


def slot_of(key: bytes) -> int:
    """The slot of a cluster that *key* is in, by what it has in braces, or else by all of it."""
    begin = key.find(b"{") + 1
    end = key.find(b"}", begin)
    return crc_hqx(key[begin:end] if 0 < begin < end else key, 0) % SLOTS
