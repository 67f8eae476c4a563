"""An app with a few models."""
