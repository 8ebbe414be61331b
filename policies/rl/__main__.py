"""Runs one job of a sweep, in its own process. Simulators' processes import this file again: nothing heavy above."""

import sys
from pathlib import Path

if __name__ == "__main__":
    from ...jobs.launch import run_as_job
    from .sweep import run_job

    sys.exit(run_as_job(lambda: run_job(Path(sys.argv[1])), int(sys.argv[2])))
