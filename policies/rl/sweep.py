"""Sweeps: several runs of `train_rl`, each in a separate process, on any engine of `jobs.launch`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BadInput
from ...jobs.launch import JobSpec, Launch, ResourceBudget, run_jobs
from ...progress import console
from ...run_folder import open_run, read_json
from .plan import RLPlan
from .run import require_learner

if TYPE_CHECKING:
    from .preparation import Preparation

_MODULE = "pixio_robot.policies.rl"  # runs a job
_PROCESS, _ENVIRONMENT = 1.0, 0.35  # memory of a run without encoder and buffer, and of an environment's process [GB]


@dataclass(frozen=True)
class SweepJob:
    """A run of a sweep."""

    plan: RLPlan
    settings: Any  # of the command, written into the run folder, which is all that the job reads


def run_sweep(jobs: Sequence[SweepJob], launch: Launch) -> dict[str, str]:
    """Train what is not finished, and return why some runs failed, by the name of their folder.

    All runs are prepared here before the first one starts, so that what cannot run is refused at once.

    Raises:
        BadInput: if two runs have the same folder.
        Stopped: after SIGTERM or Ctrl-C; the same sweep resumes.
    """
    from .preparation import prepare

    require_learner()
    ResourceBudget.of(launch)  # refuses wrong settings before any work
    folders: set[Path] = set()
    waiting: list[tuple[SweepJob, JobSpec]] = []
    for job in jobs:
        plan, prepared = job.plan, prepare(job.plan)
        if plan.out in folders:
            raise BadInput(
                f"two jobs would write to {plan.out}; remove out=, or use the keys that differ: out='x/${{seed}}'"
            )
        folders.add(plan.out)
        if not _finished(plan):
            waiting.append((job, JobSpec(plan.out, _memory(plan, prepared), plan.schedule.steps)))
    for job, spec in waiting:
        open_run(spec.folder, job.settings, job.plan.inputs)
    if len(waiting) < len(jobs):
        console().print(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished already")
    specs = [spec for _, spec in waiting]
    return run_jobs(specs, launch, _MODULE, Path("runs/train_rl"), console())


def _memory(plan: RLPlan, prepared: "Preparation") -> float:
    """Return about how much memory a run needs [GB]."""
    encoder = prepared.model.vision.encoder
    weights = 0 if encoder is None else sum(each.numel() for each in encoder.parameters())
    total = _PROCESS + _ENVIRONMENT * plan.envs * plan.processes + (prepared.buffer + 4 * weights) / 1e9
    return round(total, 2)


def _finished(plan: RLPlan) -> bool:
    return read_json(plan.out / "result.json").get("steps", 0) >= plan.schedule.steps
