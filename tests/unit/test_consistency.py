from __future__ import annotations

from cacheguard.defenses.consistency import Tickets, may_share


def test_a_ticket_holds_until_its_key_is_voided() -> None:
    tickets = Tickets()
    ticket = tickets.take("k")
    assert tickets.take("k") == ticket
    tickets.void("k")
    assert tickets.take("k") != ticket


def test_a_ticket_is_never_given_out_twice() -> None:
    tickets = Tickets()
    seen = {tickets.take("k")}
    for _ in range(100):
        tickets.void("k")
        assert tickets.take("k") not in seen
        seen.add(tickets.take("k"))


def test_voiding_all_voids_every_key() -> None:
    tickets = Tickets()
    before = {key: tickets.take(key) for key in map(str, range(50))}
    tickets.void_all()
    assert all(tickets.take(key) != ticket for key, ticket in before.items())


def test_a_follower_may_share_if_it_came_before_the_lease_or_the_fill_was_accepted() -> None:
    assert may_share(joined_before_lease=True, proven=False)
    assert may_share(joined_before_lease=False, proven=True)
    assert not may_share(joined_before_lease=False, proven=False)
