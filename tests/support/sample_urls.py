"""The URLs of the Django application in `sample_apps`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from django.contrib.auth.models import Group, Permission
from django.core.management import call_command
from django.http import Http404, HttpRequest, JsonResponse, StreamingHttpResponse
from django.urls import path

_cached: dict[str, Callable[..., Any]] = {}


def make(cached: Callable[..., Any]) -> None:
    """Make the tables, unless they are there, and what the views read."""
    call_command("migrate", verbosity=0)
    if not Group.objects.exists():
        for name in ("first", "second"):
            Group.objects.create(name=name).permissions.set(Permission.objects.order_by("pk")[:2])
    _cached["groups"] = cached("groups")(load_groups)
    _cached["with permissions"] = cached("with permissions")(load_with_permissions)
    _cached["group"] = cached("group:{name}", not_found=Http404)(load_group)


def load_groups() -> Any:
    return Group.objects.order_by("name")


def load_with_permissions() -> Any:
    return list(Group.objects.order_by("name").prefetch_related("permissions"))


def load_group(name: str) -> Any:
    found = Group.objects.filter(name=name).first()
    if found is None:
        raise Http404(f"no group {name}")
    return found


def groups(_: HttpRequest) -> JsonResponse:
    return JsonResponse([each.name for each in _cached["groups"]()], safe=False)


def with_permissions(_: HttpRequest) -> JsonResponse:
    rows = _cached["with permissions"]()
    return JsonResponse([[each.name, [one.codename for one in each.permissions.all()]] for each in rows], safe=False)


def group(_: HttpRequest, name: str) -> JsonResponse:
    return JsonResponse({"name": _cached["group"](name).name})


def stream(_: HttpRequest) -> StreamingHttpResponse:
    def parts() -> Iterator[str]:
        for each in _cached["groups"]():
            yield str(each.name)

    return StreamingHttpResponse(parts())


urlpatterns = [
    path("groups", groups),
    path("with_permissions", with_permissions),
    path("group/<name>", group),
    path("stream", stream),
]
