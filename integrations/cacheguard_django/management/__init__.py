"""``manage.py cacheguard``."""
