"""How soon does another process drop what was invalidated?"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from statistics import quantiles

from benchmarks.common import claim, headline, options, private_cluster, private_redis, rounds
from benchmarks.compare.figures import pretty_seconds
from cacheguard import CacheGuard

READER = """
import json, sys, time
from cacheguard import CacheGuard

with CacheGuard(sys.argv[1]) as guard:
    for line in sys.stdin:
        while guard.get("row") != int(line) or guard.inspect("row").tier != "l1":
            time.sleep(0.0002)
        print("kept", flush=True)
        while True:
            looked_at = time.monotonic()
            if guard.inspect("row").tier != "l1":
                break
            time.sleep(0.0001)
        print(json.dumps(looked_at), flush=True)
"""

AIM, CLUSTER_AIM = 0.005, 0.020  # seconds, 99 of 100


def drops(url: str, count: int) -> list[float]:
    """Seconds from the return of `invalidate` in this process to the moment when the other one has dropped its copy."""
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    delays: list[float] = []
    with CacheGuard(url, operation_timeout=5) as guard:
        for number in range(count):
            guard.set("row", number)
            reader.stdin.write(f"{number}\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == "kept\n"
            guard.invalidate("row")
            returned = time.monotonic()
            delays.append(max(0.0, json.loads(reader.stdout.readline()) - returned))
    reader.stdin.close()
    reader.wait(10)
    return delays


def main() -> None:
    """Two processes on one server, then on a cluster of three masters."""
    chosen = options(__doc__ or "")
    for begun, aim in ((private_redis(), AIM), (private_cluster(), CLUSTER_AIM)):
        with begun as url:
            headline(__doc__ or "", url)
            delays = drops(url, rounds(chosen, 300))
            cuts = quantiles(delays, n=100)
            print(f"  p50 {pretty_seconds(cuts[49])}, longest {pretty_seconds(max(delays))}")
            claim("p99 of the delay", pretty_seconds(cuts[98]), f"≤ {pretty_seconds(aim)}", ok=cuts[98] <= aim)


if __name__ == "__main__":
    main()
