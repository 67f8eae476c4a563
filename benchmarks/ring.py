"""How evenly does a ring share keys out, how many move when a node is added, and what does a lookup cost?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, TypeAlias

from benchmarks.common import claim, headline, options, rounds, table
from benchmarks.compare.figures import pretty_seconds
from benchmarks.compare.racing import calls, race_runs
from cacheguard.servers.hashing import HashRing

KEYS = [f"cg:shop:e:user:{number}" for number in range(100_000)]
ASKED = KEYS[:2000]
NODES = 5
SETS = 4  # of names: one may be lucky
SLOW = "rendezvous"  # asks every node for every key, and needs no luck: one set will do
SHARE, LEAST_MOVED, MOST_MOVED = 0.10, 0.15, 0.19
MOST_SECONDS = 5e-6

Endpoint: TypeAlias = Callable[[str], str]
Build: TypeAlias = Callable[[Sequence[str]], Endpoint]


def ours(names: Sequence[str]) -> Endpoint:
    return HashRing(dict.fromkeys(names, 1)).node_of


def uhashring(**how: Any) -> Build:
    def build(names: Sequence[str]) -> Endpoint:
        place: Endpoint = import_module("uhashring").HashRing(nodes=list(names), **how).get_node
        return place

    return build


def rendezvous(names: Sequence[str]) -> Endpoint:
    place: Endpoint = import_module("pymemcache.client.rendezvous").RendezvousHash(nodes=list(names)).get_node
    return place


def modulo(names: Sequence[str]) -> Endpoint:
    """What many do by hand."""
    import zlib

    return lambda key: names[zlib.crc32(key.encode()) % len(names)]


CONTESTANTS: dict[str, Build] = {
    "cacheguard HashRing": ours,
    f"uhashring {version('uhashring')}": uhashring(),
    f"uhashring {version('uhashring')}, ketama": uhashring(hash_fn="ketama"),
    f"pymemcache {version('pymemcache')} rendezvous": rendezvous,
    "crc32(key) % nodes": modulo,
}


def figures(build: Build, cluster: int) -> tuple[float, float, bool]:
    """Of one set of names: the worst deviation of a share, how many keys a sixth node moves, whether only to itself."""
    names = [f"10.{cluster}.0.{number}:6379" for number in range(NODES + 1)]
    before, after = build(names[:NODES]), build(names)
    homes = [before(key) for key in KEYS]
    shares = Counter(homes)
    worst = max(abs(shares[name] * NODES / len(KEYS) - 1) for name in names[:NODES])
    moved = [there for here, there in zip(homes, map(after, KEYS), strict=True) if here != there]
    return worst, len(moved) / len(KEYS), set(moved) == {names[-1]}


def main() -> None:
    """100,000 keys over five equal nodes, and over six."""
    chosen = options(__doc__ or "")
    headline(__doc__ or "")
    width = max(map(len, CONTESTANTS))
    sets = rounds(chosen, SETS)
    print(f"  {sets} sets of {NODES} names; deviation of the worst share, and keys that one more node moves\n")
    print(f"  {'':{width}}  {'median':>8} {'worst':>8}   {'moved':>16}  to the new node alone")
    for name, build in CONTESTANTS.items():
        found = [figures(build, cluster) for cluster in range(1 if SLOW in name else sets)]
        worst, moved = sorted(each[0] for each in found), sorted(each[1] for each in found)
        alone = all(each[2] for each in found)
        print(
            f"  {name:{width}}  {worst[len(worst) // 2]:8.1%} {worst[-1]:8.1%}   {moved[0]:7.1%} – {moved[-1]:.1%}  "
            f"{'yes' if alone else 'no'}"
        )
        if build is ours:
            mine = worst[-1], moved[0], moved[-1], alone
    print()
    names = [f"10.0.0.{number}:6379" for number in range(NODES)]
    placed = {name: build(names) for name, build in CONTESTANTS.items()}
    print("  a lookup")
    times = race_runs({name: calls(place, ASKED) for name, place in placed.items()}, rounds(chosen, 10))
    table(times, f"uhashring {version('uhashring')}")
    print("  to build it")
    built = race_runs({name: calls(build, [names]) for name, build in CONTESTANTS.items()}, rounds(chosen, 4))
    table(built, f"uhashring {version('uhashring')}")
    claim("worst share of a node", f"±{mine[0]:.1%}", f"±{SHARE:.0%}", ok=mine[0] <= SHARE)
    inside = mine[1] >= LEAST_MOVED and mine[2] <= MOST_MOVED
    claim("keys moved", f"{mine[1]:.1%} – {mine[2]:.1%}", f"{LEAST_MOVED:.0%} – {MOST_MOVED:.0%}", ok=inside)
    claim("moved to the new node alone", "yes" if mine[3] else "no", "yes", ok=mine[3])
    took = times["cacheguard HashRing"].p10
    claim("a lookup", pretty_seconds(took), f"≤ {pretty_seconds(MOST_SECONDS)}", ok=took <= MOST_SECONDS)


if __name__ == "__main__":
    main()
