"""Does one run of the benchmark in its own process. Simulator processes import this file too: no heavy imports."""

import sys
from pathlib import Path

if __name__ == "__main__":
    from .run import main

    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
