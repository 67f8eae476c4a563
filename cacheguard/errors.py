"""Every exception the library raises."""

from __future__ import annotations

from .faults import Fault, fault_of


class CacheGuardError(Exception):
    """Base of everything cacheguard raises on its own behalf."""


class ConfigurationError(CacheGuardError, ValueError):
    """A URL, option or policy that cannot work; raised while a guard is built or a function decorated."""


class KeyTemplateError(ConfigurationError):
    """A key template that does not fit its function, or an argument that cannot become part of a key."""


class LoadTimeout(CacheGuardError, TimeoutError):
    """The loader took longer than the policy's ``hard_timeout``."""


class LoadFailed(CacheGuardError):
    """The load this caller waited for failed in another process, with an exception that cannot be rebuilt here."""


class Overloaded(CacheGuardError):
    """Too many loads run already and the line in front of the database is full."""


class ReentrantLoad(CacheGuardError):
    """A loader asked for the key that it is loading; waiting for itself would never end."""


class LockLost(CacheGuardError):
    """A lock expired or was taken over while its holder still worked."""


class CodecError(CacheGuardError):
    """A value that cannot become bytes, or bytes that cannot become a value."""


class Unreachable(CacheGuardError):
    """Redis did not answer, or refused to; ``fault`` says why."""

    def __init__(self, message: str, fault: Fault | None = None) -> None:
        super().__init__(message)
        self.fault: Fault = fault_of(self) if fault is None else fault


class Refused(Unreachable):
    """Redis answered, with an error."""
