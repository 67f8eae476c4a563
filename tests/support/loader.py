"""The loader of our tests is the one that users have."""

from cacheguard.testing.loader import PATIENCE, CountingLoader

__all__ = ["PATIENCE", "Loader"]

Loader = CountingLoader
