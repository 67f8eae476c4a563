"""Fragments of templates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, render_template_string
from jinja2 import TemplateSyntaxError

from cacheguard.errors import ConfigurationError
from cacheguard_flask import CacheGuardFlask, make_template_fragment_key
from tests.integrations.flask.conftest import MakeApp


def rendered(app: Flask, template: str, **values: Any) -> str:
    with app.test_request_context():
        return render_template_string(template, **values)


def test_a_fragment_is_rendered_once_and_stays_safe(app: Flask) -> None:
    template = '{% cache 60, "box" %}<b>{{ value }}</b>{% endcache %}'
    first = rendered(app, template, value="<i>")
    assert first == "<b>&lt;i&gt;</b>"
    assert rendered(app, template, value="other") == first
    for around in ("{%% set box %%}%s{%% endset %%}{{ box }}", "{%% macro box() %%}%s{%% endmacro %%}{{ box() }}"):
        assert rendered(app, around % template, value="other") == first


def test_what_a_fragment_varies_on_is_told_apart(app: Flask, extension: CacheGuardFlask) -> None:
    template = '{% cache None, "box", a, b %}{{ value }}{% endcache %}'
    assert rendered(app, template, a="x", b="y_z", value=1) == "1"
    assert rendered(app, template, a="x_y", b="z", value=2) == "2"
    assert rendered(app, template, a="x:y", b="z", value=3) == "3"
    assert rendered(app, template, a="x", b="y:z", value=6) == "6"
    assert rendered(app, template, a="x", b="y_z", value=4) == "1"
    with app.app_context():
        assert extension.get(make_template_fragment_key("box", ["x", "y_z"])) == "1"
        extension.delete_fragment("box", "x", "y_z")
    assert rendered(app, template, a="x", b="y_z", value=5) == "5"
    assert rendered(app, template, a="x_y", b="z", value=5) == "2"


def test_a_fragment_without_a_name_is_known_by_its_place(app: Flask) -> None:
    template = "{% cache 60 %}{{ value }}{% endcache %}\n{% cache 60 %}{{ value }}!{% endcache %}"
    assert rendered(app, template, value=1) == "1\n1!"
    assert rendered(app, template, value=2) == "1\n1!"


def test_del_deletes_and_renders(app: Flask) -> None:
    template = '{% cache timeout, "box" %}{{ value }}{% endcache %}'
    assert rendered(app, template, timeout="1m", value=1) == "1"
    assert rendered(app, template, timeout="del", value=2) == "2"
    assert rendered(app, template, timeout=0, value=3) == "3"
    with pytest.raises(ConfigurationError, match="timeout"):
        rendered(app, template, timeout=-1, value=3)


def test_a_template_without_autoescape_gets_its_text_as_it_is(app: Flask) -> None:
    template = '{% autoescape false %}{% cache 60, "raw" %}{{ value }}{% endcache %}{% endautoescape %}'
    assert rendered(app, template, value="<i>") == rendered(app, template, value="other") == "<i>"


def test_apps_share_no_fragments(make_app: MakeApp) -> None:
    extension = CacheGuardFlask()
    one, other = make_app(extension, "one"), make_app(extension, "other")
    template = '{% cache 60, "box" %}{{ value }}{% endcache %}'
    assert rendered(one, template, value=1) == "1"
    assert rendered(other, template, value=2) == "2"


def test_the_tag_may_be_left_to_others() -> None:
    app = Flask("without")
    CacheGuardFlask(app, with_jinja2_ext=False)
    assert not any("Fragment" in name for name in app.jinja_env.extensions)
    app.extensions["cacheguard"].close()


class AsyncApp(Flask):
    jinja_options = {"enable_async": True}  # noqa: RUF012 - as Flask declares it


@pytest.fixture(params=[Flask, AsyncApp])
def either(request: pytest.FixtureRequest, url: str) -> Iterator[Flask]:
    """An app whose templates are rendered as ever, and one whose templates run in an event loop."""
    made: Flask = request.param("shop")
    made.config["CACHEGUARD_URL"] = url
    CacheGuardFlask(made)
    yield made
    made.extensions["cacheguard"].close()


CALLED = """
{%- macro m() %}{% set x = caller() %}{% cache 60, "h", x %}[{{ x }}]{% endcache %}{% endmacro -%}
{% call m() %}hi{% endcall %}"""


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ('{% cache 60, "a" %}hello{% endcache %}', "hello"),
        ('{% cache 60, "b" %}{% for x in "hello" %}{{ x }}{% endfor %}{% endcache %}', "hello"),
        ('{% cache 60, "c" %}he{% cache 60, "d" %}llo{% endcache %}{% endcache %}', "hello"),
        ('{% macro m(x) %}{% cache 60, "e", x %}{{ x }}{% endcache %}{% endmacro %}{{ m(1) }}{{ m(2) }}', "12"),
        ('{% macro m(x) %}<b>{{ x }}</b>{% endmacro %}{% cache 60, "f" %}{{ m("<") }}{% endcache %}', "<b>&lt;</b>"),
        ('{% for x in [1, 2] %}{% cache 60, "g", x %}{{ loop.index }}{% endcache %}{% endfor %}', "12"),
        ('{% cache "del", "a" %}gone{% endcache %}', "gone"),
        (CALLED, "[hi]"),
    ],
)
def test_a_fragment_is_its_text_in_templates_of_either_kind(either: Flask, template: str, shown: str) -> None:
    assert [rendered(either, template) for _ in range(2)] == [shown, shown]


def test_a_fragment_of_an_event_loop_is_kept_for_the_next(url: str) -> None:
    app = AsyncApp("shop")
    app.config["CACHEGUARD_URL"] = url
    CacheGuardFlask(app)
    template = '{% cache 60, "box" %}{{ value }}{% endcache %}'
    assert rendered(app, template, value=1) == rendered(app, template, value=2) == "1"
    app.extensions["cacheguard"].close()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("{% cache 60 %}{{ x }}{% endcache %}", "needs a name"),
        ('{% cache 60, "a" %}{{ caller() }}{% endcache %}', "cannot see the macro's caller"),
        ('{% cache 60, "a" %}{% if x %}{{ varargs }}{% endif %}{% endcache %}', "cannot see the macro's varargs"),
    ],
)
def test_what_a_fragment_in_a_macro_cannot_know_is_refused(either: Flask, body: str, why: str) -> None:
    with pytest.raises(TemplateSyntaxError, match=why):
        rendered(either, f"{{% macro m(x) %}}{body}{{% endmacro %}}{{{{ m(1) }}}}")
