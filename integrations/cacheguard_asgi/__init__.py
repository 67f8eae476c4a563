"""A shared HTTP cache as pure ASGI middleware."""
