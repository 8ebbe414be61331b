"""All of it on one task: demonstrations, cached tokens, behaviour cloning, evaluation, report.

Every stage reuses what it finds, so a second run is quick and an interrupted one resumes.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..datasets.dataset import open_dataset
from ..datasets.token_cache import class_token_cosine
from ..encoders.encoder import Backbone
from ..encoders.load import BUNDLED
from ..envs.features import task_features
from ..envs.registry import TaskSpec
from ..envs.rollout import default_width, plan_episodes
from ..memory import PeakMemory
from ..report.page import write_report
from ..run_folder import open_run, read_json, write_json
from ..stages import Stages
from ..training.distributed import World
from .build import PolicyDesign, build_policy
from .cloning import CloningSetup, Prepared, load_backbone, prepare_cloning
from .collect import collect, has_privileged_state
from .depth_inputs import recorded_depth
from .evaluate import Evaluation, RolloutSettings, check_no_overlap, evaluate_expert, evaluate_policy
from .loaded import load_policy
from .settings import HELD_OUT_SEED, ObservationSettings, TrainingSettings
from .train import TrainPlan, check_training, train_policy


@dataclass(frozen=True)
class QuickstartPlan:
    """What is recorded, trained and evaluated."""

    task: str
    demos: int
    valid: int
    episodes: int
    episode_steps: int | None  # at most; None is the task's own
    render: str
    design: PolicyDesign
    training: TrainingSettings
    seed: int
    envs: int | None
    cache: Path


def quickstart(plan: QuickstartPlan, device: torch.device, out: Path, settings: Any) -> dict[str, Any]:
    """Do every stage and return what ``result.json`` holds.

    Args:
        settings: of the command, written into the run folder.
    """
    with PeakMemory() as memory:
        return _run_stages(plan, device, out, settings, memory)


def _run_stages(
    plan: QuickstartPlan, device: torch.device, out: Path, settings: Any, memory: PeakMemory
) -> dict[str, Any]:
    request = _task(plan)
    backbone = load_backbone(plan.design.encoder)
    _check_settings(plan, request, backbone)
    open_run(out, settings)
    stages = Stages(out / "stages.json", read_json(out / "stages.json"))
    with stages.timed("collect") as spent:
        collected = collect(request, plan.demos, plan.valid, 0, out / "demos.hdf5", None)
        spent |= collected.seconds
    dataset = open_dataset(collected.path)
    plans = plan_episodes(request, plan.episodes, HELD_OUT_SEED)
    check_no_overlap(dataset.initial_states, plans)

    designs = {plan.design.label: (plan.design, backbone)}
    if plan.design.encoder != "none" and "proprio" in dataset.features:
        plain = ObservationSettings(steps=plan.design.observation.steps)
        designs["none"] = (replace(plan.design, encoder="none", observation=plain), None)
    prepared: dict[str, Prepared] = {}
    with stages.timed("encode") as spent:
        for label, (design, encoder) in designs.items():
            setup = CloningSetup(plan.seed, cache=plan.cache, device=device)
            prepared[label] = prepare_cloning(dataset, design, encoder, setup)
            _add(spent, prepared[label].frames.seconds)
    checkpoints = {}
    with stages.timed("train") as spent:
        for label, each in prepared.items():
            depth_epochs = plan.design.observation.depth_epochs
            train_plan = TrainPlan(out, label, plan.seed, depth_epochs=depth_epochs)
            result = train_policy(each.model, each.data, plan.training, train_plan, World(device))
            checkpoints[label] = result.last
            _add(spent, result.seconds)

    evaluations: dict[str, Evaluation] = {}
    rollout = RolloutSettings(plan.envs, videos=True)
    with stages.timed("evaluate") as spent:
        for label, path in checkpoints.items():
            evaluation = evaluate_policy(load_policy(path, backbone), request, plans, device, out, rollout)
            if evaluation.reused < len(plans):
                _add(spent, evaluation.seconds)
            evaluations[label] = evaluation
        evaluations["expert"] = evaluate_expert(request, plans, out, default_width())

    weights, headline = "none" if backbone is None else backbone.weights, plan.design.label
    tokens = [cache for cache in prepared[headline].frames.caches if "cls" in cache.arrays]
    result_json = {
        "title": f"{plan.task} · {plan.demos} demonstrations",
        "task": plan.task,
        "headline": headline,
        "success_rule": "last",
        "policies": {label: evaluation.summary() for label, evaluation in evaluations.items()},
        "encoder": plan.design.encoder,
        "weights": weights,
        "fusion": getattr(plan.design.config, "fusion", plan.design.config.name),
        "observation_steps": plan.design.observation.steps,
        "normed": plan.design.observation.normed,
        "render": plan.render,
        "horizon": request.horizon,
        "stages": stages.summary(),
        "peak_memory_mb": round(max(memory.megabytes, read_json(out / "result.json").get("peak_memory_mb", 0))),
        "class_token_cosine": class_token_cosine(tokens[0]) if tokens else None,
        "notes": notes(plan, request, weights),
        "checkpoint": str(checkpoints[headline]),
    }
    write_json(out / "result.json", result_json)
    write_report(out)
    return result_json


def _add(spent: dict[str, float], more: dict[str, float]) -> None:
    for what, seconds in more.items():
        spent[what] = spent.get(what, 0.0) + seconds


def _task(plan: QuickstartPlan) -> TaskSpec:
    """Return the environment, its episodes at most as long as the task's own."""
    depth = () if recorded_depth(plan.design.observation) == "none" else ("depth",)
    state = ("state",) if has_privileged_state(plan.task) else ()
    request = TaskSpec(plan.task, ("rgb", *depth, "proprio", *state), render=plan.render)
    env = request.make()
    env.close()
    own = env.horizon
    return replace(request, horizon=own if plan.episode_steps is None else min(plan.episode_steps, own))


def _check_settings(plan: QuickstartPlan, request: TaskSpec, backbone: Backbone | None) -> None:
    """Refuse impossible settings before an hour of work, not after."""
    model = build_policy(plan.design, task_features(request), ("rgb",), backbone, plan.seed)
    check_training(plan.training, model)


def notes(plan: QuickstartPlan, request: TaskSpec, weights: str) -> list[str]:
    """Return what a reader must know before trusting the numbers, in plain sentences."""
    lines, encoder = [], plan.design.encoder
    if weights == "random":
        lines.append(
            f"The encoder {encoder} has random weights from a fixed seed: nothing was pre-trained. "
            "Its success shows how easy the task is, and says nothing about Pixio."
        )
    if encoder in BUNDLED:
        lines.append(
            f"The encoder {encoder} was pre-trained on images of these simulators, from other initial states: expect "
            "less of it elsewhere."
        )
    lines.append(f"Demonstrations and episodes last {request.horizon} steps.")
    if plan.render != "benchmark":
        lines.append(f"Images are rendered at quality {plan.render!r}, in demonstrations and evaluation alike.")
    lines.append("Success is judged at the last step, as CortexBench does; 'any' counts success at any step.")
    return lines
