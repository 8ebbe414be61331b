"""Training runs side by side: each job of a sweep is a process of its own, with any engine of `jobs.launch`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from ...errors import BadInput
from ...jobs.launch import JobSpec, ResourceBudget, run_jobs
from ...progress import console
from ...run_folder import open_run, read_json
from .commands import TrainRL
from .run import require_learner, run_train_rl

if TYPE_CHECKING:
    from .preparation import Preparation

_MODULE = "pixio_robot.policies.rl"  # runs a job
_PROCESS, _ENVIRONMENT = 1.0, 0.35  # memory of a run without encoder and buffer, and of an environment's process [GB]


def run_sweep(commands: Sequence[TrainRL]) -> tuple[list[Path], dict[str, str]]:
    """Train side by side what is not finished; return the run folders, and why some failed, by the folder's name.

    All are prepared here before the first one starts, so that what cannot run is refused at once.

    Raises:
        BadInput: if two jobs have the same run folder.
        Stopped: after SIGTERM or Ctrl-C; the same sweep goes on.
    """
    from .preparation import prepare

    require_learner()
    launch = commands[0].launch()
    ResourceBudget.of(launch)  # which refuses wrong settings before any work
    folders: dict[Path, TrainRL] = {}
    inputs, specs = {}, []
    for command in commands:
        prepared = prepare(command)
        if prepared.out in folders:
            raise BadInput(
                f"two jobs would write to {prepared.out}; leave out= away, or name what differs: out='x/${{seed}}'"
            )
        folders[prepared.out], inputs[prepared.out] = command, prepared.inputs
        if not _finished(prepared.out, command):
            specs.append(JobSpec(prepared.out, _memory(command, prepared), command.steps))
    for spec in specs:
        open_run(spec.folder, folders[spec.folder], inputs[spec.folder])
    if len(specs) < len(commands):
        console().print(f"{len(commands) - len(specs)} of {len(commands)} runs are finished already")
    return list(folders), run_jobs(specs, launch, _MODULE, Path("runs/train_rl"), console())


def _memory(command: TrainRL, prepared: "Preparation") -> float:
    """Return about how much memory a run needs [GB]."""
    weights = 0 if prepared.backbone is None else sum(each.numel() for each in prepared.backbone.parameters())
    processes = prepared.images if command.processes is None else command.processes
    total = _PROCESS + _ENVIRONMENT * command.envs * processes + (prepared.buffer + 4 * weights) / 1e9
    return round(total, 2)


def _finished(out: Path, command: TrainRL) -> bool:
    return read_json(out / "result.json").get("steps", 0) >= command.steps


def run_job(folder: Path) -> None:
    """Train what the ``config.yaml`` of a run folder says."""
    settings = OmegaConf.merge(OmegaConf.structured(TrainRL), OmegaConf.load(folder / "config.yaml"))
    command = OmegaConf.to_object(settings)
    assert isinstance(command, TrainRL)
    command.out = str(folder)
    run_train_rl(command)
