"""Runs one cell, in a process of its own. Simulators' processes import this file again: nothing heavy above."""

import sys
from pathlib import Path

if __name__ == "__main__":
    from .cell import main

    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
