"""What the first process of a container owes: to reap processes that nobody else waits for.

A Triton that is killed leaves the processes of its models to the first process. The kernel keeps
each as a zombie until that one has waited for it, which the launcher does not do for strangers.
`docker run --init` puts such a process in front; Kubernetes does not.
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType

__all__ = ["FORWARDED", "stay_behind"]

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stay_behind() -> int | None:
    """Fork where this is the first process; the child goes on, and this one reaps.

    Call it before any thread is started.

    Returns:
        None to go on: in the child, and where this is not the first process. In the first process,
        when the child has ended, the exit status to end with.
    """
    if os.getpid() != 1:
        return None
    # Blocked until the handlers know the child: a signal in between would be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        return None

    def forward(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just been reaped
            os.kill(child, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    return _reap(child)


def _reap(child: int) -> int:
    """Wait for whatever ends, until the child has."""
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code  # as a shell tells of a signal
