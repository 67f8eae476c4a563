"""Invalidation bound to SQLAlchemy sessions, and a transactional outbox."""
