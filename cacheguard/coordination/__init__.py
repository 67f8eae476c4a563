"""Tools on Redis that are useful without the cache."""
