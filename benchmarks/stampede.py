"""Eight processes with 25 readers each want one cold key: how many loads, and how long do they wait?"""

from __future__ import annotations

from common import claim, headline, options, pretty, private_redis
from crowd import Plan, send_off

LOAD_TIME = 0.1
MOST = 0.130
QUICK, FULL = 8, 40


def main() -> None:
    """A new cold key each round, a loader of 100 ms, and p99 over all reads of all rounds."""
    chosen = options(__doc__ or "")
    with private_redis() as url:
        headline(__doc__ or "", url)
        for how in ("plain", "threads", "tasks"):
            plan = Plan(
                how,
                url,
                load_time=LOAD_TIME,
                every=0.7,
                rounds=FULL if chosen.full else QUICK,
                reads=1,
                pause=0.0,
                policy={"ttl": 60.0},
                one_key=False,
            )
            outcome = send_off(plan)
            print(f"  {how}: loads of each round {outcome.loads}, p50 {pretty(outcome.reads.percentile(50))}")
            p99 = outcome.reads.percentile(99)
            if how == "plain":
                print(f"  plain p99: {pretty(p99)}")
            else:
                claim(f"{how} loads", str(max(outcome.loads)), "1", ok=set(outcome.loads) == {1})
                claim(f"{how} p99", pretty(p99), f"≤ {pretty(MOST)}", ok=p99 <= MOST)


if __name__ == "__main__":
    main()
