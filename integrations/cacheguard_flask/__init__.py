"""Flask extension, and a backend for Flask-Caching."""
