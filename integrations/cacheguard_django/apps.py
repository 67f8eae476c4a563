"""``INSTALLED_APPS = ["cacheguard_django"]``: system checks, and ``manage.py cacheguard``."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core import checks


class CacheGuardConfig(AppConfig):
    """The Django app. The cache backend works without it."""

    name: str = "cacheguard_django"
    verbose_name: Any = "cacheguard"  # text, possibly lazy: the stubs have no public name for that type

    def ready(self) -> None:
        from .checks import check_caches

        checks.register(check_caches, checks.Tags.caches)
