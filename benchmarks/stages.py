"""Where a quickstart run spent its time: ``python benchmarks/stages.py RUN``."""

import json
import sys
from pathlib import Path

from timing import Section, markdown


def measure(run: Path) -> Section:
    """Read the stages of a finished run.

    Args:
        run: the run's folder, or its ``result.json``.
    """
    path = run / "result.json" if run.is_dir() else run
    if not path.is_file():
        raise SystemExit(f"no {path}; make one with: pixio-robot quickstart out={path.parent}")
    result = json.loads(path.read_text())
    stages = result["stages"]
    total = sum(stage["seconds"] for stage in stages.values())
    rows = []
    work: dict[str, float] = {}  # [s], a stage's time split by its shares
    for name, stage in stages.items():
        rows.append((name, f"{stage['seconds']:.0f} s", f"{stage['seconds'] / total:.0%}", _listed(stage["shares"])))
        for what, share in stage["shares"].items():
            work[what] = work.get(what, 0.0) + share * stage["seconds"]
    rows.append(("all", f"{total:.0f} s", "100%", _listed({what: time / total for what, time in work.items()})))
    how = (
        f"One quickstart run, {result['title']}, encoder {result['encoder']}, images of quality "
        f"{result['render']!r}, peak memory {result['peak_memory_mb']} MB. What workers do side by side counts "
        "once, as their mean; starting processes, videos and files are in the seconds but in no share."
    )
    return Section("Stages of a quickstart run", how, ("stage", "time", "of the run", "work"), rows)


def _listed(shares: dict[str, float]) -> str:
    largest = sorted(shares.items(), key=lambda each: -each[1])
    return ", ".join(f"{what} {share:.0%}" for what, share in largest) or "reused"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/stages.py RUN")
    print(markdown(measure(Path(sys.argv[1]))))
