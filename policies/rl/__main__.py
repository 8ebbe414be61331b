"""Runs one job of a sweep in a separate process. Processes of simulators import this file too: keep it light."""

import sys
from pathlib import Path

if __name__ == "__main__":
    from ...jobs.launch import run_as_job
    from .commands import train_folder

    sys.exit(run_as_job(lambda: train_folder(Path(sys.argv[1])), int(sys.argv[2])))
