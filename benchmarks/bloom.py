"""What does it cost to turn an id away that does not exist, and how many slip through?"""

from __future__ import annotations

from common import calls_of, claim, headline, options, pretty, private_redis, race, rounds, table
from pybloom_live import BloomFilter

from cacheguard import CacheGuard

CAPACITY = 50_000
ERROR_RATE = 0.01
ABSENT = range(10_000_000, 10_100_000)
A_ROUND = range(20_000_000, 20_001_000)
MOST_SECONDS = 2e-6
MOST_FALSE = 1.2 * ERROR_RATE


def load(number: int) -> int | None:
    return None


def main() -> None:
    """A full filter of 50,000 ids at 1 %, as shared in Redis and mirrored here."""
    chosen = options(__doc__ or "")
    with private_redis() as url:
        headline(__doc__ or "", url)
        rival = BloomFilter(CAPACITY, ERROR_RATE)
        for number in range(CAPACITY):
            rival.add(number)
        with CacheGuard(url, operation_timeout=5) as guard:
            users = guard.bloom("users", capacity=CAPACITY, error_rate=ERROR_RATE)
            users.rebuild(range(CAPACITY))
            get_user = guard.cached("user:{number}", bloom=users)(load)
            # What the filter takes for "maybe" would be loaded and cached, and is another benchmark's subject.
            rejected = [number for number in A_ROUND if users.absent(number) and number not in rival]
            times = race(
                {
                    "pybloom_live, in": calls_of(rival.__contains__, rejected),
                    "cacheguard filter.absent": calls_of(users.absent, rejected),
                    "cacheguard decorated call": calls_of(get_user, rejected),
                },
                rounds(chosen, 60),
            )
            table(times, "pybloom_live, in")
            took = times["cacheguard decorated call"].least
            claim("a call for an absent id", pretty(took), f"≤ {pretty(MOST_SECONDS)}", ok=took <= MOST_SECONDS)
            if guard.stats().loads:
                raise RuntimeError("an id that the filter knows to be absent was loaded")
            hidden = sum(users.absent(number) for number in range(CAPACITY))
            claim("existing ids turned away", str(hidden), "0", ok=hidden == 0)
            rate = sum(not users.absent(number) for number in ABSENT) / len(ABSENT)
            claim("false positives", f"{rate:.2%}", f"≤ {MOST_FALSE:.2%}", ok=rate <= MOST_FALSE)


if __name__ == "__main__":
    main()
