"""The command line and what it shows; nothing below imports it."""
