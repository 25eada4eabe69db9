"""How a process of a run ends when something went wrong: at once, and having said why."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from kinemae.data_tools.command import exit_code_of, log, log_error
from kinemae.pretrain.runtime.processes import Processes, leave_group, lost_peer


@contextmanager
def ending_together(processes: Processes) -> Iterator[None]:
    """Around all that a process does as one of a group.

    Among several, an error ends the process on the spot: leaving the group in order, or what other modules
    do at exit, may wait for processes that in turn wait for this one. Loader workers go with their process.
    Whoever started the processes sees the exit code and ends the others.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if processes.world == 1:
            leave_group()
            raise
        lost = lost_peer(error)
        if lost is None:
            log_error(error)
        else:  # no fault of this one, and its stack says nothing of why the other ended
            log.error("lost another process in an exchange (%s): that one's log says why it ended", lost)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(exit_code_of(error))
    leave_group()
