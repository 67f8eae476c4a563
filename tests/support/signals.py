"""How tests and the processes that they start take signals: always in the same way, however the run was started."""

from __future__ import annotations

import signal
import threading
from typing import Any

# A shell that puts a program into the background makes it ignore the first two, nohup the third; who started the shell
# may have done more. What is ignored stays ignored in every process that is started, unless that one says otherwise.
OFTEN_IGNORED = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTERM,
    signal.SIGCHLD,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def start_hearing_signals() -> None:
    """Let processes that are started from now on meet every signal as one that is started at a terminal would.

    A handler does not outlive exec, so a signal with one is again at its default in the new program, and this process
    goes on ignoring what it was told to ignore. Only Python's own answer to SIGINT is put back here, too.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for each in OFTEN_IGNORED:
        if signal.getsignal(each) is signal.SIG_IGN:
            signal.signal(each, signal.default_int_handler if each is signal.SIGINT else _ignore)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OFTEN_IGNORED)


def _ignore(number: int, frame: Any) -> None:
    """Do as SIG_IGN does."""
