"""A wire that breaks, from where users have it, too."""

from cacheguard.testing.faults import GARBAGE, Fault, Traffic
from cacheguard.testing.proxy import FaultProxy

__all__ = ["GARBAGE", "Fault", "FaultProxy", "Traffic"]
