"""All exceptions of the library."""

from __future__ import annotations

from .faults import Fault, fault_of


class CacheGuardError(Exception):
    """Base class of the library's own exceptions."""


class ConfigurationError(CacheGuardError, ValueError):
    """A URL, option or policy cannot work; raised while a guard is built or a function decorated."""


class KeyTemplateError(ConfigurationError):
    """A key template does not fit its function, or an argument cannot become part of a key."""


class LoadTimeout(CacheGuardError, TimeoutError):
    """The loader took longer than the policy's ``hard_timeout``."""


class LoadFailed(CacheGuardError):
    """The load was cancelled before it had a result. A load that fails raises the loader's own exception."""


class Overloaded(CacheGuardError):
    """The load or the change was refused to protect the database.

    - All ``max_loads`` permits are taken, and the queue is full or no permit came free within ``load_wait``.
    - The circuit breaker of the policy is open.
    - 32 loads run in background threads of this process already.
    - `CacheGuard.update` lost the race against other writers 1000 times in a row.
    """


class ReentrantLoad(CacheGuardError):
    """A loader reads the key that it is loading, so it would wait for itself forever.

    Also, loads are nested so deep, each in the loader of the one before, that Python's recursion limit leaves no room
    for another one. Only the blocking door nests on the stack.
    """


class LockLost(CacheGuardError):
    """A lock expired or was taken over while its holder still worked. Nothing raises it yet."""


class CodecError(CacheGuardError):
    """A value cannot be cached, or bytes cannot be decoded to a value.

    - It cannot be encoded to bytes: raised by what stores a value by hand. A reader gets its value all the same.
    - It can be read only once, as an iterator: raised by whatever loads or stores it.
    - It is to be changed, or under ``l1_copy`` to be stored, in this process, and cannot be copied.
    """


class Unreachable(CacheGuardError):
    """Redis did not answer, or answered with an error; ``fault`` is the reason."""

    def __init__(self, message: str, fault: Fault | None = None) -> None:
        super().__init__(message)
        self.fault: Fault = fault_of(self) if fault is None else fault


class Refused(Unreachable):
    """Redis answered with an error."""
