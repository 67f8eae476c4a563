"""One room for each way in which a cached system dies. Rules are pure; what talks to Redis does so through `ports`.

An entry says what is done; then where (a file of the package and a name in it), which tests hold it, and which page
explains it. Inner: not for import; use `cacheguard` or `cacheguard.extending`.

avalanche: many keys expire at once, or everything is asked of the database at once
    TTLs are shortened at random
        defenses/avalanche.py: jittered | tests/unit/test_avalanche.py | docs/guarantees.md
    warm-ups keep to a rate
        defenses/avalanche.py: next_start | tests/unit/test_avalanche.py | README.md
    loads at once are bounded
        runtime/bulkhead.py: FairBulkhead | tests/unit/test_bulkhead.py | docs/outages.md
    a database that fails is left alone
        coordination/breaker.py: Breaker | tests/unit/test_breaker.py | docs/outages.md
penetration: requests for what does not exist
    bad arguments are refused
        doors/functions.py: Function | tests/behaviour/test_functions.py | README.md
    unknown ids are known to be absent
        defenses/penetration/filter.py: BloomTier | tests/behaviour/test_bloom.py | docs/guarantees.md
    no row is hidden by a lost filter
        defenses/penetration/stored.py: News | tests/properties/test_bloom_properties.py | docs/guarantees.md
    no row is hidden by a forged one
        defenses/penetration/signed.py: Signed | tests/behaviour/test_bloom_signed.py | docs/guarantees.md
    of a fleet one process builds it
        defenses/penetration/filter.py: BloomTier | tests/behaviour/test_bloom_ensure.py | docs/guarantees.md
    absences are cached, so many at most
        defenses/penetration/absences.py: AbsenceBudget | tests/behaviour/test_absences.py | docs/guarantees.md
breakdown: a hot key expires under load
    an entry is judged once
        defenses/breakdown.py: judge | tests/unit/test_breakdown.py | docs/guarantees.md
    one loads, the others wait
        engine/flights.py: Flight | tests/behaviour/test_breakdown.py | docs/guarantees.md
    a reload begins before the expiry
        defenses/breakdown.py: early_by | tests/properties/test_jitter_properties.py | docs/guarantees.md
    a load that fails is not repeated
        defenses/breakdown.py: next_pause | tests/unit/test_breakdown.py | docs/guarantees.md
inconsistency: database and cache are written by two hands
    a late answer stays out of L1
        defenses/consistency.py: Tickets | tests/unit/test_consistency.py | docs/consistency.md
    a late fill stays out of Redis
        tiers/remote.py: Remote | tests/interleavings/test_every_schedule.py | docs/consistency.md
    an older version is not cached
        defenses/consistency.py: version_text | tests/unit/test_consistency.py | docs/consistency.md
    a write is fenced while it goes on
        doors/writing.py: Write | tests/interleavings/test_writes.py | docs/consistency.md
    an invalidation is delivered
        delivery/outbox.py: Outbox | tests/faults/test_outbox.py | docs/guarantees.md
    other processes hear of it
        delivery/bus.py: Bus | tests/faults/test_bus.py | docs/guarantees.md
outage: Redis fails, or is too slow to be of use
    faults are told apart and treated
        faults.py: TREATMENTS | tests/faults/test_error_classes.py | docs/outages.md
    a breaker opens, probes and closes
        defenses/outage.py: Switch | tests/unit/test_breaker.py | docs/outages.md
    each server has a breaker of its own
        client/circuits.py: Circuits | tests/unit/test_circuits.py | docs/outages.md
"""
