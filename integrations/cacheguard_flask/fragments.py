"""``{% cache timeout, name, … %} … {% endcache %}``: a fragment of a template."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast
from urllib.parse import quote

from flask import current_app
from jinja2 import nodes
from jinja2.async_utils import auto_await
from jinja2.ext import Extension
from jinja2.parser import Parser

from .app_cache import AppCache
from .contexts import in_its_context
from .timeouts import Timeout, ttl_of_call

DELETE = "del"


def make_template_fragment_key(fragment_name: str, vary_on: Iterable[object] | None = None) -> str:
    """The key text of a fragment. Different names and values never make the same text.

    Args:
        fragment_name: the second argument of the tag, after the timeout.
        vary_on: the arguments after the name.
    """
    return "template-fragment:" + ":".join(quote(str(part), safe="/ ") for part in (fragment_name, *(vary_on or ())))


class FragmentExtension(Extension):
    """The tag ``cache``. It uses the cache of the app that renders the template."""

    tags: set[str] = {"cache"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """``{% cache timeout [, name [, vary_on …]] %}``; the default name is template and line."""
        line = next(parser.stream).lineno
        arguments = [parser.parse_expression()]
        if parser.stream.skip_if("comma"):
            arguments.append(parser.parse_expression())
        else:
            if "macro" in cast("Any", parser)._tag_stack:  # noqa: SLF001 - nothing else says where a tag is
                parser.fail("{% cache %} in a macro needs a name: all calls of the macro have one position", line)
            arguments.append(nodes.Const(f"{parser.filename or parser.name}{line}"))
        vary_on: list[nodes.Expr] = []
        while parser.stream.skip_if("comma"):
            vary_on.append(parser.parse_expression())
        body = parser.parse_statements(("name:endcache",), drop_needle=True)
        for name in _names_of_macros(body):
            parser.fail(f"{{% cache %}} cannot see the macro's {name}: set a variable to it before", line)
        call = self.call_method("_fragment", [*arguments, nodes.List(vary_on)])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _fragment(self, timeout: Timeout | None, name: str, vary_on: list[object], caller: Callable[[], Any]) -> Any:
        cache: AppCache = current_app.extensions["cacheguard"]
        key = make_template_fragment_key(name, vary_on)
        if self.environment.is_async:  # then a template awaits what a call returns
            return self._afragment(cache, key, timeout, caller)
        if timeout == DELETE:
            cache.guard.invalidate(key)
            return caller()
        rules: dict[str, Any] = ttl_of_call(timeout)
        # The output of the tag is not escaped again, so plain text can replace Markup.
        load = in_its_context(cache.app, lambda: str(caller()))
        text: str = cache.guard.get_or_set(key, load, usable=_is_text, **rules)
        return text

    @staticmethod
    async def _afragment(cache: AppCache, key: str, timeout: Timeout | None, caller: Callable[[], Any]) -> str:
        if timeout == DELETE:
            await cache.guard.ainvalidate(key)
            return str(await auto_await(caller()))

        async def load() -> str:
            return str(await auto_await(caller()))

        # The template's event loop ends with the rendering, and with it a reload in the background.
        text: str = await cache.guard.aget_or_set(
            key, load, usable=_is_text, **ttl_of_call(timeout), rebuild="mutex", stale_while_revalidate=None
        )
        return text


def _names_of_macros(body: Iterable[nodes.Node]) -> Iterable[str]:
    """The names that would not mean those of the macro around: the body is a macro of its own."""
    for node in body:
        if isinstance(node, nodes.Name) and node.name in ("caller", "varargs", "kwargs"):
            yield node.name
        elif not isinstance(node, nodes.Macro | nodes.CallBlock):
            yield from _names_of_macros(node.iter_child_nodes())


def _is_text(value: object) -> bool:
    return isinstance(value, str)
