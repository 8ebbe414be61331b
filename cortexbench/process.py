"""The process of one cell: its words go to its log, its end comes with its parent's."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import torch

from ..errors import PixioError
from ..files import explain


def run_as_process(work: Callable[[], object], parent: int) -> int:
    """Do a cell's work and return the exit status. What went wrong is the last line printed.

    Args:
        parent: number of the process that started this one, with which it ends.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        work()
    except PixioError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 1
    return 0


def _end_with(parent: int) -> None:
    """End this process and its workers when the one that started it is gone: nobody waits for the cell any more."""
    while os.getppid() == parent:
        time.sleep(1.0)
    if os.getsid(0) == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)
