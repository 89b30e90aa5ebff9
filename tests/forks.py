"""Children that the tests fork."""

import os
import signal
from collections.abc import Callable


def start_child(job: Callable[[], object], fork: Callable[[], int] = os.fork) -> int:
    """Fork; the child ends with status 0 if `job` returns what is true."""
    child = fork()
    if child == 0:
        signal.alarm(60)  # a child that hangs ends as well
        status = 1
        try:
            status = 0 if job() else 1
        finally:
            os._exit(status)
    return child


def ended_well(child: int) -> bool:
    """Wait for a child; whether its job returned what is true."""
    return os.waitpid(child, 0)[1] == 0
