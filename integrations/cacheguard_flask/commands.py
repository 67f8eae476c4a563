"""``flask cacheguard …``: inspect an app's cache, and empty it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from typing import Any
from uuid import uuid4

import click
from flask import current_app
from flask.cli import AppGroup

from cacheguard import CacheGuard
from cacheguard.errors import CacheGuardError

from .doctor import Finding, findings

NOTHING_THERE = 3  # exit status, as of `cacheguard inspect`

commands: AppGroup = AppGroup("cacheguard", help="Look at this app's cache, or empty it.")


def _guard() -> CacheGuard:
    guard: CacheGuard = current_app.extensions["cacheguard"].guard
    return guard


def _delivered(guard: CacheGuard) -> None:
    """Fail if an invalidation is still pending: it would be lost with this process."""
    if guard.stats().invalidations_queued:
        raise click.ClickException("Redis cannot be reached: nothing was invalidated there")


@commands.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def stats(*, as_json: bool) -> None:
    """Say whether Redis answers, how fast, and how this process's cache is doing.

    The counters are those of the process that answers: this one has just begun. In a running app, call
    `app.extensions["cacheguard"].guard.stats()`.
    """
    guard = _guard()
    began = time.perf_counter()
    guard.inspect(f"cacheguard-stats:{uuid4()}")
    took = (time.perf_counter() - began) * 1000
    said: dict[str, Any] = {
        "guard": repr(guard),
        "round_trip_ms": round(took, 3),
        "counters_of": f"this command, process {os.getpid()}, which has just begun; not of the running workers",
    }
    counts = dataclasses.asdict(guard.stats())
    counts["age_at_serve"] = [[None if math.isinf(bound) else bound, count] for bound, count in counts["age_at_serve"]]
    said |= counts
    if as_json:
        click.echo(json.dumps(said))
        return
    for name, value in said.items():
        click.echo(f"{name:22} {value}")


@commands.command()
@click.confirmation_option(prompt="Forget everything this app has cached?")
def clear() -> None:
    """Forget everything this app has cached."""
    guard = _guard()
    guard.clear()
    _delivered(guard)
    click.echo("cleared")


@commands.command()
@click.argument("key")
def inspect(key: str) -> None:
    """Say what is cached under KEY: its state, age, time left and tags. Exit status 3 if there is nothing.

    The key of a page ends in scheme and host: view//works@https://example.org
    """
    guard = _guard()
    found = guard.inspect(key)
    if not guard.stats().l2_up:
        raise click.ClickException("Redis cannot be reached")
    click.echo(f"state     {found.state}")
    if found.age is not None and found.ttl_left is not None:
        click.echo(f"tier      {found.tier}\nage       {found.age:.1f} s\nttl left  {found.ttl_left:.1f} s")
    for tag in found.tags:
        click.echo(f"tag       {tag}")
    if found.state == "missing":
        sys.exit(NOTHING_THERE)


@commands.command()
@click.argument("keys", nargs=-1, required=True)
def invalidate(keys: tuple[str, ...]) -> None:
    """Forget KEYS, and the pages under them."""
    current_app.extensions["cacheguard"].forget(*keys)
    _delivered(_guard())
    click.echo(f"{len(keys)} invalidated")


@commands.command("invalidate-tags")
@click.argument("tags", nargs=-1, required=True)
def invalidate_tags(tags: tuple[str, ...]) -> None:
    """Forget everything that carries one of TAGS."""
    guard = _guard()
    guard.invalidate_tags(*tags)
    _delivered(guard)
    click.echo(f"{len(tags)} tags invalidated")


@commands.command()
def doctor() -> None:
    """Try the cache, and look for settings that will hurt. Exit status 1 if something does not work."""
    try:
        found = findings(current_app.extensions["cacheguard"], current_app.config)
    except CacheGuardError as error:
        found = [Finding("error", str(error))]
    for each in found:
        click.echo(f"{each.level:8} {each.text}")
    if any(each.level == "error" for each in found):
        sys.exit(1)
