"""A hot key has expired and its load takes 500 ms: do its readers notice?"""

from __future__ import annotations

from common import claim, headline, options, pretty, private_redis
from crowd import Plan, send_off

LOAD_TIME = 0.5
MOST = 0.010
QUICK, FULL = 4, 20


def main() -> None:
    """``rebuild="logical"``: 200 readers read the expired key seven times each, while and after it is reloaded."""
    chosen = options(__doc__ or "")
    with private_redis() as url:
        headline(__doc__ or "", url)
        for how in ("plain", "threads", "tasks"):
            plan = Plan(
                how,
                url,
                load_time=LOAD_TIME,
                every=2.5,
                rounds=FULL if chosen.full else QUICK,
                reads=7,
                pause=0.1,
                policy={"ttl": 1.0} | ({} if how == "plain" else {"jitter": None, "rebuild": "logical"}),
                one_key=True,
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
