from typing import Any

from django.core.cache import cache
from django.http import HttpRequest, HttpResponse
from django.template import Context, Template
from django.urls import include, path
from django.views.decorators.cache import cache_page

counts: dict[str, int] = {}


def count(name: str) -> int:
    counts[name] = counts.get(name, 0) + 1
    return counts[name]


@cache_page(60)
def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"page {count('page')}")


def session(request: HttpRequest) -> HttpResponse:
    held: Any = request.session
    held["visits"] = held.get("visits", 0) + 1
    return HttpResponse(str(held["visits"]))


def fragment(request: HttpRequest) -> HttpResponse:
    template = Template("{% load cache %}{% cache 60 side user %}{{ number }}{% endcache %}")
    return HttpResponse(template.render(Context({"number": count("fragment"), "user": request.GET.get("user")})))


def toolbar(request: HttpRequest) -> HttpResponse:
    cache.set("greeting", "hello", 60)
    cache.get("greeting")
    cache.get("nothing")
    cache.get_many(["greeting", "nothing"])
    return HttpResponse("<html><body>shown</body></html>")


urlpatterns = [
    path("page/", page),
    path("session/", session),
    path("fragment/", fragment),
    path("toolbar/", toolbar),
    path("__debug__/", include("debug_toolbar.urls")),
]
