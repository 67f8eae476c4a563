"""What happens in each of the four, to both applications alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

PROCESSES = 4
SLOTS = 32  # queries that the database works on at a time; more wait in line


@dataclass(frozen=True, slots=True, kw_only=True)
class Disaster:
    """One kind of traffic, and how the guarded application is set up for it."""

    name: str
    title: str
    happens: str
    """What the traffic does, for the reader of the report."""
    defence: str
    """What cacheguard does about it."""
    requests: int
    seconds: float | None
    """The requests arrive over this time, whether or not earlier ones are answered; None: each client asks again as
    soon as it has its answer."""
    limit: float
    """After so many seconds the run ends, with whatever is left unanswered."""
    clients: int
    """Threads in each process."""
    products: int
    """How many products are asked for; 0: ids that do not exist."""
    hot: float = 0.0
    """How unevenly they are asked for: 0 is evenly, 1 gives a few of them most of the requests."""
    distance: tuple[float, float]
    """Least and most that the database is away, in seconds for both ways together."""
    ttl: int
    warm: bool = False
    """All products are cached together just before the traffic starts."""
    writes: int = 0
    """Changes of price during the run."""
    bloom: bool = False
    policy: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def short(self) -> str:
        """The title's first word."""
        return self.title.partition(":")[0]


AVALANCHE = Disaster(
    name="avalanche",
    title="Avalanche: everything expires at once",
    happens=(
        "A deployment has cached 2,000 products together with one TTL of 4 s, so they expire together while 2,000 "
        "requests a second go on arriving. A query takes 30 to 60 ms, and the database works on 32 at a time."
    ),
    defence=(
        "cacheguard draws each TTL anew (jitter=0.25) and, with rebuild='logical', gives readers the value past its "
        "TTL at once while one reload per product runs behind. At most 4 run in each process, so the refill takes "
        "longer, at a rate that the database can bear: answers may be some seconds older than their TTL meanwhile, and "
        "a part of the queries is still to come when the run ends."
    ),
    requests=16_000,
    seconds=8.0,
    limit=20.0,
    clients=24,
    products=2_000,
    hot=0.5,
    distance=(0.030, 0.060),
    ttl=4,
    warm=True,
    policy={"jitter": 0.25, "rebuild": "logical"},
)

PENETRATION = Disaster(
    name="penetration",
    title="Penetration: ids that do not exist",
    happens=(
        "A scanner asks for 200,000 ids that do not exist, as fast as it gets answers over 96 connections; what is "
        "not in the database is never in the cache, so plain cache-aside asks the database each time. A query takes "
        "2 to 4 ms."
    ),
    defence=(
        "cacheguard holds a Bloom filter of the 100,000 real ids (error rate 0.1 %), which answers nearly all of them "
        "in the process; validate= refuses impossible ids, and what slips through is cached as an absence."
    ),
    requests=200_000,
    seconds=None,
    limit=35.0,
    clients=24,
    products=0,
    distance=(0.002, 0.004),
    ttl=60,
    bloom=True,
)

BREAKDOWN = Disaster(
    name="breakdown",
    title="Breakdown: one hot product expires",
    happens=(
        "1,500 requests a second ask for one product whose page takes the database 200 to 300 ms, cached with a TTL of "
        "2 s. Whenever it expires, every request that comes in before it is cached again queries the database, too."
    ),
    defence=(
        "With rebuild='logical' one reader in the whole fleet gets the lease and reloads behind; all others get the "
        "value they had at once, from Redis or from the process."
    ),
    requests=10_500,
    seconds=7.0,
    limit=25.0,
    clients=24,
    products=1,
    distance=(0.200, 0.300),
    ttl=2,
    warm=True,
    policy={"rebuild": "logical"},
)

INCONSISTENCY = Disaster(
    name="inconsistency",
    title="Inconsistency: prices change while they are read",
    happens=(
        "60 products are read 2,400 times and repriced 120 times a second; each change is committed and then removed "
        "from the cache, and a query is on its way for 0 to 50 ms. An answer is stale if a newer price had been "
        "committed and its removal confirmed before the question was asked."
    ),
    defence=(
        "Plain cache-aside stores what a slow reader saw before the change after the change has cleared the cache. "
        "cacheguard lets nobody fill without a lease, and an invalidation ends every lease: the late value is refused."
    ),
    requests=14_400,
    seconds=6.0,
    limit=20.0,
    clients=24,
    products=60,
    distance=(0.0, 0.050),
    ttl=60,
    warm=True,
    writes=720,
    policy={"l1": False},
)

FULL = (AVALANCHE, PENETRATION, BREAKDOWN, INCONSISTENCY)


def shortened(disaster: Disaster) -> Disaster:
    """The same in a fraction of the time, for a look and for tests."""
    if disaster.seconds is None:
        return replace(
            disaster,
            requests=disaster.requests // 20,
            limit=5.0,
            happens=disaster.happens.replace("200,000", f"{disaster.requests // 20:,}"),
        )
    share = 1.6 / disaster.seconds
    return replace(
        disaster,
        requests=round(disaster.requests * share),
        writes=round(disaster.writes * share),
        seconds=1.6,
        limit=6.0,
        ttl=1 if disaster.ttl < disaster.seconds else disaster.ttl,
        happens=disaster.happens.replace(f"TTL of {disaster.ttl} s", "TTL of 1 s"),
    )
