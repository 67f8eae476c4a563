"""Django's exceptions for "does not exist" come back as themselves, and answer 404 each time."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ObjectDoesNotExist
from django.core.handlers.exception import response_for_exception
from django.http import Http404
from django.test import RequestFactory

from cacheguard import CacheGuard
from tests.integrations.django.shop.models import Person


@pytest.mark.parametrize("make", [lambda: Http404("no such page"), lambda: Person.DoesNotExist("no person 1")])
def test_an_absence_of_django_is_itself_in_every_process(redis_url: str, make: Any) -> None:
    def load() -> None:
        raise make()

    expected = make()
    for _ in range(2):
        with CacheGuard(redis_url) as guard:
            cached = guard.cached("row", not_found=(Http404, ObjectDoesNotExist))(load)
            raised: list[Exception] = []
            for _ in range(3):
                with pytest.raises(type(expected)) as caught:
                    cached()
                raised.append(caught.value)
            assert len(set(map(id, raised))) == 3
            for error in raised:
                assert (type(error), error.args, str(error), vars(error)) == (
                    *(type(expected), expected.args, str(expected), vars(expected)),
                )


def test_http404_is_answered_with_404_each_time(redis_url: str) -> None:
    def load() -> None:
        raise Http404("no such page")

    statuses: list[int] = []
    for _ in range(2):
        with CacheGuard(redis_url) as guard:
            cached = guard.cached("page", not_found=Http404)(load)
            for _ in range(3):
                with pytest.raises(Http404) as caught:
                    cached()
                statuses.append(response_for_exception(RequestFactory().get("/x"), caught.value).status_code)
    assert statuses == [404] * 6
