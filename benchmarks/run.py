"""Runs every benchmark and writes ``benchmarks/README.md``: ``python benchmarks/run.py [--quickstart RUN]``.

Worker processes import this file too, so heavy imports stay inside functions.
"""

import argparse
import os
import platform
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import bc_steps
import encoder
import evaluation
import loader
import pretraining
import reinforcement_learning
import stages
from timing import Section, markdown

from pixio_robot.files import replacing

PACKAGES = (
    "torch",
    "numpy",
    "mujoco",
    "metaworld",
    "transformers",
    "robomimic",
    "stable_baselines3",
    "gymnasium",
    "simplejpeg",
    "webdataset",
)
HEAD = """# Side by side

Written by `python benchmarks/run.py`. Each benchmark is a file beside it that also runs alone. Both
sides do the same work in turns (ours, theirs, ours, ...) after one warm-up turn each. Times and
rates are medians. `ratio` is the median over pairs of their time divided by ours: above 1 we are
faster. `quartiles` are those of the same ratios.
"""


def main() -> None:
    """Run the benchmarks whose packages are installed; print and write the results."""
    parser = argparse.ArgumentParser(description="Run every benchmark and write benchmarks/README.md.")
    parser.add_argument(
        "--quickstart", type=Path, metavar="RUN", help="folder of a finished quickstart run, to report its stages"
    )
    arguments = parser.parse_args()
    parts = [HEAD, markdown(machine())]
    print(parts[-1], flush=True)
    benchmarks = {
        "encoder": encoder,
        "pretraining": pretraining,
        "loader": loader,
        "bc_steps": bc_steps,
        "evaluation": evaluation,
        "reinforcement_learning": reinforcement_learning,
    }
    for name, benchmark in benchmarks.items():
        parts.append(_run(name, benchmark))
        print(parts[-1], flush=True)
    if arguments.quickstart is not None:
        parts.append(markdown(stages.measure(arguments.quickstart)))
        print(parts[-1], flush=True)
    with replacing(Path(__file__).with_name("README.md")) as temporary:
        temporary.write_text("\n".join(parts))


def _run(name: str, benchmark: ModuleType) -> str:
    missing = [extra for package, extra in benchmark.NEEDS.items() if find_spec(package) is None]
    if missing:
        return f"## {name}\n\nskipped: needs the extra {', '.join(missing)}\n"
    return markdown(benchmark.measure()) + f"\n`python benchmarks/{name}.py`\n"


def machine() -> Section:
    """Describe the machine."""
    import torch

    from pixio_robot.envs.rollout import default_width

    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES if find_spec(name) is not None]
    graphics = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    how = (
        f"{_processor()}, {default_width()} cores{graphics}; {platform.system()}, Python {platform.python_version()}, "
        f"{', '.join(versions)}. Load average before the first benchmark: {load}."
    )
    return Section("Machine", how)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
