"""Drive the simulated robot for minutes and watch memory: `python benchmarks/robot_soak.py --bundle B --out FOLDER`.

Prints resident memory over time, its slope after the first minute, and the loop's own numbers, as JSON.
"""

import argparse
import json
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from pixio_robot.deploy.load import LoadedSource
from pixio_robot.deploy.runtime import Runtime
from pixio_robot.progress import silent
from pixio_robot.robots.commands import Run, drive_robot

EVERY = 5.0  # between two looks at memory [s]
STEPS = 50  # of an episode of toy/reach, at 20 a second


def main() -> None:
    """Run it."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--bundle", required=True)
    words.add_argument("--out", required=True)
    words.add_argument("--minutes", type=float, default=10.0)
    asked = words.parse_args()
    runtime = Runtime.load(asked.bundle, 1)
    episodes = round(asked.minutes * 60 * 20 / STEPS)
    command = Run(
        robot="task:toy/reach",
        bundle=asked.bundle,
        episodes=episodes,
        out=asked.out,
        estop=str(Path(asked.out) / "estop.json"),
    )
    rows: list[tuple[float, float]] = []
    soak_ended, begin, process = threading.Event(), time.monotonic(), psutil.Process()

    def watch() -> None:
        done = Path(asked.out) / "episodes.jsonl"
        while not soak_ended.wait(EVERY):
            finished = len(done.read_text().splitlines()) if done.is_file() else 0
            if finished >= episodes:
                return  # what follows is the report
            rows.append((time.monotonic() - begin, process.memory_info().rss / 2**20))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with silent():
        report = drive_robot(command, LoadedSource(runtime.manifest, runtime, "soak"))
    soak_ended.set()
    watcher.join()
    times, memory = np.array(rows).T
    late = times > 60
    slope = float(np.polyfit(times[late] / 60, memory[late], 1)[0]) if late.sum() > 2 else float("nan")
    print(
        json.dumps(
            {
                "minutes": round(float(times[-1]) / 60, 2),
                "episodes": len(report.rows),
                "endings": dict(report.endings),
                "memory [MiB]": {
                    "1 min": float(memory[late][0]),
                    "end": float(memory[-1]),
                    "most": float(memory.max()),
                    "each minute": [round(float(each), 1) for each in memory[:: round(60 / EVERY)]],
                },
                "slope after the first minute [MiB/min]": round(slope, 3),
                **{name: round(value, 3) for name, value in report.summary.items()},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
