"""A wire that breaks, from where users have it, too."""

from cacheguard.testing.proxy import GARBAGE, Fault, FaultProxy, Traffic

__all__ = ["GARBAGE", "Fault", "FaultProxy", "Traffic"]
