"""URLs, read as places to connect to."""
