from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from cacheguard.defenses.consistency import Tickets, may_share, version_text


def test_a_ticket_holds_until_its_name_is_voided() -> None:
    tickets = Tickets()
    ticket = tickets.take()
    tickets.revoke("other")
    assert tickets.holds(ticket, "k")
    assert tickets.holds(ticket, "k", ("tag",))
    tickets.revoke("k")
    assert not tickets.holds(ticket, "k")
    assert tickets.holds(tickets.take(), "k")


def test_a_ticket_holds_for_names_that_were_not_known_when_it_was_taken() -> None:
    tickets = Tickets()
    tickets.revoke("tag")
    ticket = tickets.take()
    assert tickets.holds(ticket, "k", ("tag",))
    tickets.revoke("tag")
    assert not tickets.holds(ticket, "k", ("tag",))


def test_voiding_all_voids_every_ticket() -> None:
    tickets = Tickets()
    ticket = tickets.take()
    tickets.revoke_all()
    assert not any(tickets.holds(ticket, key) for key in map(str, range(50)))
    assert tickets.holds(tickets.take(), "k")


def test_a_follower_may_share_if_it_came_before_the_lease_or_the_fill_was_accepted() -> None:
    assert may_share(joined_before_lease=True, proven=False)
    assert may_share(joined_before_lease=False, proven=True)
    assert not may_share(joined_before_lease=False, proven=False)


def test_versions_compare_as_texts() -> None:
    assert version_text(None) == ""
    for smaller, larger in [
        (9, 10),
        (2**53, 2**53 + 1),
        ("9/FFFFFFFF", "A/0"),
        ("16/B374D848", "16/B374D849"),
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC)),
        (datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2))), datetime(2026, 1, 1, tzinfo=UTC)),
        ("9", 10),
    ]:
        assert version_text(smaller) < version_text(larger)
        assert len(version_text(smaller)) == len(version_text(larger)) == 20


@pytest.mark.parametrize("version", [True, 1.5, b"1", [1]])
def test_what_is_no_version_is_an_error(version: object) -> None:
    with pytest.raises(TypeError, match="version must be a whole number"):
        version_text(version)


@pytest.mark.parametrize("version", [-1, 10**20, "latest", "16/", "1/123456789", datetime(2026, 1, 1), "-1", "²"])  # noqa: DTZ001 - one without a zone is meant
def test_a_version_out_of_range_is_an_error(version: object) -> None:
    with pytest.raises(ValueError, match="version must be"):
        version_text(version)
