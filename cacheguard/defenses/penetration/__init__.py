"""Penetration: keys that exist nowhere."""
