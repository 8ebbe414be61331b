"""The whole way on one task: demonstrations, cached tokens, behaviour cloning, evaluation, report.

Every stage reuses what it finds, so a second run is quick and an interrupted one goes on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from ..datasets.robomimic import DemoSet
from ..datasets.token_cache import class_token_cosine
from ..encoders.load import BUNDLED, Backbone
from ..envs.registry import TaskSpec
from ..envs.rollout import default_width, plan_episodes
from ..hardware import choose_device, choose_precision
from ..memory import PeakMemory
from ..report.page import write_report
from ..run_folder import open_run, read_json, settings_digest, write_json
from .bc import new_policy, train_bc
from .collect import collect
from .commands import Quickstart
from .depth_inputs import check_depth_encoder, predicted_depth, recorded_depth
from .evaluate import Evaluation, evaluate_expert
from .runs import cache_for, check_held_out, evaluate_policy, load_backbone
from .settings import HELD_OUT_SEED
from .visuomotor import EncoderIdentity, load_policy, policy_kind


@dataclass
class Stages:
    """How long each stage took and where its time went, summed over interrupted runs; kept in ``stages.json``.

    What workers do side by side counts once, as their mean; what is in no share is start-up and waiting.
    """

    path: Path
    times: dict[str, dict[str, Any]] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[dict[str, float]]:
        """Time a stage; the caller puts where its seconds went into the yielded dict, nothing if all was reused."""
        spent: dict[str, float] = {}
        began = perf_counter()
        try:
            yield spent
        finally:
            entry = self.times.setdefault(name, {"seconds": 0.0, "spent": {}})
            entry["reused"] = not spent
            if spent or not entry["spent"]:
                entry["seconds"] += perf_counter() - began
            for what, seconds in spent.items():
                entry["spent"][what] = entry["spent"].get(what, 0.0) + seconds
            write_json(self.path, self.times)

    def summary(self) -> dict[str, Any]:
        """Return, for each stage, its seconds, whether this run reused it, and the shares of its time."""
        return {
            name: {
                "seconds": round(entry["seconds"], 2),
                "reused": entry["reused"],
                "shares": {what: round(spent / entry["seconds"], 4) for what, spent in entry["spent"].items()},
            }
            for name, entry in self.times.items()
        }


def run_quickstart(command: Quickstart) -> tuple[Path, dict[str, Any]]:
    """Run every stage; return the run folder and what ``result.json`` holds."""
    with PeakMemory() as memory:
        return _run_stages(command, memory)


def _run_stages(command: Quickstart, memory: PeakMemory) -> tuple[Path, dict[str, Any]]:
    request = _request(command)
    device = choose_device(command.device)
    precision = choose_precision(command.precision, device)
    backbone = load_backbone(command.encoder)
    _check_settings(command, request, backbone)
    out = Path(command.out or f"runs/quickstart/{command.task.replace('/', '-')}-{settings_digest(command)}")
    open_run(out, command)
    stages = Stages(out / "stages.json", read_json(out / "stages.json"))
    width = command.envs or 2 * default_width()

    with stages.timed("collect") as spent:
        collected = collect(request, command.demos, command.valid, 0, out / "demos.hdf5", None)
        spent |= collected.seconds
    demos = DemoSet(collected.path)
    plans = plan_episodes(request, command.episodes, HELD_OUT_SEED)
    check_held_out(demos.starts, plans)

    cache = None
    if backbone is not None:
        with stages.timed("encode") as spent:
            cache = cache_for(backbone, demos, command.embedding, Path(command.cache), device, precision)
            spent |= cache.seconds

    kind = policy_kind(command.encoder)
    names = [kind, "blind"] if kind != "blind" and "proprio" in demos.widths else [kind]
    checkpoints = {}
    without_depth = replace(command.embedding, depth="none", depth_head=None)
    depths = predicted_depth(Path(command.cache), command.embedding, demos, device)
    with stages.timed("train") as spent:
        for name in names:
            seeing = backbone is not None and name == "bc"
            result = train_bc(
                demos,
                cache if seeing else None,
                EncoderIdentity.of(backbone, precision) if backbone is not None and seeing else None,
                backbone.token_shape if backbone is not None and seeing else None,
                embedding=command.embedding if name == kind else without_depth,
                settings=command.policy,
                seed=command.seed,
                device=device,
                out=out,
                kind=name,
                backbone=backbone if seeing else None,
                depths=depths if name == kind else None,
            )
            checkpoints[name] = result.last
            for what, seconds in result.seconds.items():
                spent[what] = spent.get(what, 0.0) + seconds

    evaluations: dict[str, Evaluation] = {}
    with stages.timed("evaluate") as spent:
        for name in names:
            policy = load_policy(checkpoints[name])
            evaluation = evaluate_policy(policy, backbone, request, plans, device, out, width, True)
            if evaluation.reused < len(plans):
                for what, seconds in evaluation.seconds.items():
                    spent[what] = spent.get(what, 0.0) + seconds
            evaluations[name] = evaluation
        evaluations["expert"] = evaluate_expert(request, plans, out, default_width())

    weights = "none" if backbone is None else backbone.weights
    result_json = {
        "title": f"{command.task} · {command.demos} demonstrations",
        "task": command.task,
        "headline": names[0],
        "success_rule": "last",
        "policies": {name: evaluation.summary() for name, evaluation in evaluations.items()},
        "encoder": command.encoder,
        "weights": weights,
        "fusion": command.embedding.fusion,
        "frames": command.embedding.frames,
        "normed": command.embedding.normed,
        "render": command.render,
        "horizon": request.horizon,
        "stages": stages.summary(),
        "peak_memory_mb": round(max(memory.megabytes, read_json(out / "result.json").get("peak_memory_mb", 0))),
        "class_token_cosine": None if cache is None else class_token_cosine(cache),
        "notes": notes(command, request, weights),
        "checkpoint": str(checkpoints[names[0]]),
    }
    write_json(out / "result.json", result_json)
    write_report(out)
    return out, result_json


def _request(command: Quickstart) -> TaskSpec:
    """Return the environment, its horizon at most the task's own."""
    depth = () if recorded_depth(command.embedding) == "none" else ("depth",)
    request = TaskSpec(command.task, ("rgb", *depth, "proprio", "state"), render=command.render)
    env = request.make()
    env.close()
    own = env.horizon
    return replace(request, horizon=own if command.horizon is None else min(command.horizon, own))


def _check_settings(command: Quickstart, request: TaskSpec, backbone: Backbone | None) -> None:
    """Refuse impossible settings before an hour of work, not after."""
    task = replace(request, observe=("proprio",)).make().task
    tokens = None if backbone is None else backbone.token_shape
    check_depth_encoder(command.embedding, backbone)
    widths = {"proprio": task.proprio_dim, "state": task.state_dim, "actions": task.action_dim}
    new_policy(tokens, command.embedding, widths, command.policy, command.seed, policy_kind(command.encoder))


def notes(command: Quickstart, request: TaskSpec, weights: str) -> list[str]:
    """Return what a reader must know before trusting the numbers, in plain sentences."""
    lines = []
    if weights == "random":
        lines.append(
            f"The encoder {command.encoder} has random weights from a fixed seed: nothing was pre-trained. "
            "The success it reaches says what the task gives away, not what Pixio is worth."
        )
    if command.encoder in BUNDLED:
        lines.append(
            f"The encoder {command.encoder} was pre-trained on images of these simulators, from other starts: expect "
            "less of it elsewhere."
        )
    lines.append(f"Demonstrations and episodes last {request.horizon} steps.")
    if command.render != "benchmark":
        lines.append(f"Images are rendered at quality {command.render!r}, in demonstrations and evaluation alike.")
    lines.append("Success is judged at the last step, as CortexBench does; 'any' counts success at any step.")
    return lines
