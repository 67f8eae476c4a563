"""The table of targets, and rows of their own for tags, a secret and nested namespaces."""

from __future__ import annotations

from benchmarks.compare.figures import Row

L1, L2, BATCH, MISS, CROWD, BOTH, SIZE = (
    "A hit in the process",
    "A hit in Redis",
    "Batches",
    "A miss",
    "Many readers at once",
    "Both tiers",
    "Memory and filters",
)
REDIS = "redis-py"  # GET, MGET, or GET and SET, by hand

ROWS = (
    Row("l1-int", "L1 hit, f(int)", L1, "ratio", 2.6, "functools"),
    Row("l1-kw", "L1 hit, f(int, kw=str)", L1, "ratio", 1.15, "functools"),
    Row("l1-async", "L1 hit, await f(int)", L1, "ratio", 2.1, "bare await"),
    Row("l2-100B", "L2 hit, 100 B", L2, "ratio", 0.75, REDIS),
    Row("l2-10kB", "L2 hit, 10 kB, a list of records", L2, "ratio", 0.85, REDIS),
    Row("l2-100B-async", "L2 hit, 100 B, async, one after another", L2, "ratio", 0.70, REDIS),
    Row("l2-10kB-async", "L2 hit, 10 kB, async, one after another", L2, "ratio", 0.80, REDIS),
    Row("l2-50-tasks", "L2 hit, 100 B, 50 tasks at once, per hit", L2, "ratio", 0.25, REDIS),
    Row("many-100B", "get_many of 100 × 100 B", BATCH, "ratio", 1.0, REDIS),
    Row("many-100B-async", "aget_many of 100 × 100 B", BATCH, "ratio", 1.0, REDIS),
    Row("many-10kB", "get_many of 100 × 10 kB", BATCH, "ratio", 1.0, REDIS),
    Row("many-10kB-async", "aget_many of 100 × 10 kB", BATCH, "ratio", 1.0, REDIS),
    Row("miss", "miss with a free loader, protected", MISS, "ratio", 1.8, REDIS),
    Row("miss-async", "miss with a free loader, protected, async", MISS, "ratio", 1.5, REDIS),
    Row("tags", "L2 hit, 100 B, an entry with two tags", L2, "ratio", None, REDIS),
    Row("tags-async", "L2 hit, 100 B, an entry with two tags, async", L2, "ratio", None, REDIS),
    Row("secret", "L2 hit, 100 B, signed", L2, "ratio", None, REDIS),
    Row("secret-async", "L2 hit, 100 B, signed, async", L2, "ratio", None, REDIS),
    Row("nested", "L2 hit, 100 B, in a namespace in a namespace", L2, "ratio", None, REDIS),
    Row("nested-async", "L2 hit, 100 B, in a namespace in a namespace, async", L2, "ratio", None, REDIS),
    Row("features-miss", "miss of an entry with two tags, signed, in a nested namespace", MISS, "ratio", None, REDIS),
    Row("cold-threads", "cold key, 8 processes × 25 threads, 100 ms loader: p99", CROWD, "p99", 0.120, None, loads=1),
    Row("cold-tasks", "cold key, 8 processes × 25 tasks, 100 ms loader: p99", CROWD, "p99", 0.110, None, loads=1),
    Row("hot-threads", "expired hot key, logical, 8 × 25 threads: p99", CROWD, "p99", 0.010, None, loads=1),
    Row("hot-tasks", "expired hot key, logical, 8 × 25 tasks: p99", CROWD, "p99", 0.003, None, loads=1),
    Row("zipf", "zipf over both tiers, reads per second", BOTH, "faster", 4.5, REDIS),
    Row("zipf-async", "zipf over both tiers, reads per second, async", BOTH, "faster", 4.5, REDIS),
    Row("l1-memory", "process memory per L1 entry, int → int", SIZE, "bytes", 260, None),
    Row("redis-memory", "Redis memory per entry of 100 B", SIZE, "ratio", 1.4, REDIS),
    Row("bloom", "an id that does not exist, answered by the filter in the process", SIZE, "seconds", 1.2e-6, None),
)


def chosen(words: str) -> list[Row]:
    """The rows whose names begin with one of *words*; all of them without words.

    Raises:
        ValueError: a word that no row begins with.
    """
    asked = words.split()
    for word in asked:
        if not any(row.name.startswith(word) for row in ROWS):
            raise ValueError(f"no row begins with {word!r}; there are {', '.join(row.name for row in ROWS)}")
    return [row for row in ROWS if not asked or any(row.name.startswith(word) for word in asked)]
