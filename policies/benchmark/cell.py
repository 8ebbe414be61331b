"""One cell of the benchmark: one policy on one task, learned and judged. ``python -m pixio_robot.policies.benchmark.cell
FOLDER`` runs the cell that FOLDER/cell.json describes; all it needs and leaves is in files.
"""

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...envs.registry import EnvRequest, new_task
from ...envs.rollout import plan_episodes
from ...hardware import choose_device, choose_precision
from ...metrics import EpisodeRecord
from ...progress import Progress
from ...run_folder import digest, read_json, write_json
from ...schemas import HELD_OUT_SEED
from ..bc import train_bc
from ..collect import collect
from ..demos import DemoSet
from ..evaluate import Evaluation
from ..runs import cache_for, check_held_out, evaluate_policy, load_backbone
from ..visuomotor import EncoderIdentity, load_policy, policy_kind
from .protocol import BUDGETS, FIRST_DEMO, Budget, Protocol, protocol_of, within


@dataclass(frozen=True)
class Cell:
    """What is run; its digest names its folder."""

    task: str
    encoder: str
    fusion: str
    seed: int
    budget: str

    @property
    def name(self) -> str:
        """The folder's name: readable, and different for different settings."""
        words = f"{self.task}-{Path(self.encoder).stem}-{self.fusion}-{self.seed}".replace("/", "-").replace(":", "-")
        return f"{words}-{digest(asdict(self), asdict(self.protocol), asdict(self.limits))[:6]}"

    @property
    def limits(self) -> Budget:
        """How much of the protocol is run."""
        return BUDGETS[self.budget]

    @property
    def protocol(self) -> Protocol:
        """How the task is learned and judged, within the budget."""
        protocol = within(protocol_of(self.task), self.limits)
        return replace(protocol, embedding=replace(protocol.embedding, fusion=self.fusion))


def request_of(cell: Cell) -> EnvRequest:
    """Return the environment of a cell's demonstrations and episodes."""
    own, limits = new_task(cell.task).horizon, cell.limits
    return EnvRequest(
        cell.task,
        observe=("rgb", "proprio", "state"),
        cameras=cell.protocol.cameras,
        image_size=limits.image_size,
        render=limits.render,
        horizon=min(own, limits.horizon or own),
    )


def run_cell(cell: Cell, root: Path, experts: dict[str, str], progress: Progress) -> dict[str, Any]:
    """Do what is missing of a cell and return its result, which is also ``result.json`` of its folder.

    Args:
        root: of the benchmark; demonstrations and tokens below it are shared by the cells.
        experts: files of experts, by task.
    """
    out, protocol = root / "cells" / cell.name, cell.protocol
    if found := read_json(out / "result.json"):
        return dict(found)
    request = request_of(cell)
    demos = _demonstrations(cell, request, root, experts.get(cell.task), progress)
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    backbone, kind = load_backbone(cell.encoder), policy_kind(cell.encoder)
    cache = None
    if backbone is not None:
        cache = cache_for(backbone, demos, protocol.embedding, root / "cache", device, precision, progress)
    trained = train_bc(
        demos,
        cache,
        None if backbone is None else EncoderIdentity.of(backbone, precision),
        None if backbone is None else backbone.token_shape,
        embedding=protocol.embedding,
        settings=protocol.policy,
        seed=cell.seed,
        device=device,
        out=out,
        kind=kind,
        keep=protocol.moments,
        progress=progress,
    )
    columns: dict[str, list[Evaluation]] = {"released": [], "honest": []}
    for column, first, episodes, checkpoints in (
        ("released", cell.seed, protocol.episodes, trained.kept),
        ("honest", HELD_OUT_SEED, cell.limits.honest_episodes, [trained.last]),
    ):
        plans = plan_episodes(request, episodes, first)
        check_held_out(demos.starts, plans)
        for checkpoint in checkpoints:
            folder = out / column / checkpoint.stem
            columns[column].append(
                evaluate_policy(load_policy(checkpoint), backbone, request, plans, device, folder, None, False, progress)
            )
    result = {
        "cell": asdict(cell),
        "moments": list(protocol.moments),
        "released": [_mean_score(each.rows) for each in columns["released"]],
        "honest": _mean_score(columns["honest"][0].rows),
        "weights": "none" if backbone is None else backbone.weights,
    }
    write_json(out / "result.json", result)
    return result


def _demonstrations(
    cell: Cell, request: EnvRequest, root: Path, expert: str | None, progress: Progress
) -> DemoSet:
    name = f"{cell.task.replace('/', '-')}-{cell.protocol.demos}-{digest(asdict(request))}.hdf5"
    path = root / "demos" / name
    collect(request, cell.protocol.demos, 0, FIRST_DEMO, path, 1, progress, expert)
    return DemoSet(path)


def _mean_score(rows: list[EpisodeRecord]) -> float:
    return sum(row.score for row in rows) / len(rows)


def main(folder: Path) -> None:
    """Run the cell that a folder describes."""
    about = read_json(folder / "cell.json")
    run_cell(Cell(**about["cell"]), Path(about["root"]), about["experts"], Progress())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
