"""Django's sessions in a cache whose Redis is away.

Django's session store draws a new key and tries `add` again, 10,000 times, as long as nothing is stored; then the
request fails. So `add` of a session says that it was stored, like `set`: the page is answered, and the session is gone
with it. Sessions that must outlive Redis belong in ``cached_db``.
"""

from __future__ import annotations

from typing import Any

CACHE_ONLY = "django.contrib.sessions.backends.cache"
# KEY_PREFIX of that module, which may not be imported before the settings; that of ``cached_db`` begins alike.
_PREFIX, _NOT = "django.contrib.sessions.cache", "django.contrib.sessions.cached_db"


def is_session(key: Any) -> bool:
    """True for the key under which Django's session store keeps a session that is nowhere else."""
    return isinstance(key, str) and key.startswith(_PREFIX) and not key.startswith(_NOT)
