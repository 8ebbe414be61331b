"""From a request to runs. Names are checked, encoders are loaded once, and what cannot run is reported, all before the
first run starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..datasets.dataset import Feature, camera_keys, open_dataset
from ..encoders.load import WITHOUT_ENCODER, Backbone, load_encoder
from ..encoders.pixio import TokenShape
from ..errors import BadInput, MissingExtra, UnknownName, closest
from ..plugins import find_plugin
from ..policies.build import build_policy
from ..policies.settings import FUSIONS
from .protocol import (
    BEST_CHECKPOINT,
    BOTH,
    BUDGETS,
    HAS_PROPRIO,
    PROTOCOLS,
    SUITES,
    TASKS,
    protocol_of,
)
from .run import EXPERT, Method, Paths, RunSpec
from .sources import ADROIT, Skipped, Sources, find_paths, source_of


@dataclass(frozen=True)
class BenchmarkRequest:
    """What a benchmark covers: every combination of tasks, encoders, policies, fusions and seeds."""

    tasks: Any = "all"  # as `task_names` takes them
    encoders: Sequence[str] = ()
    policies: Sequence[str] = ("mlp",)
    fusions: Sequence[str] = ("mean",)
    seeds: Sequence[int] | None = None  # None is the budget's
    budget: str = "smoke"
    protocol: str = BOTH
    precision: str = "fp32"
    horizon: int = 1  # actions predicted at once
    demos: str | None = None  # folder of demonstrations
    experts: Any = None  # folder of Adroit's experts, or files by task
    device: str = "auto"


@dataclass(frozen=True)
class EncoderInfo:
    """What the estimates need to know of an encoder."""

    weights: str  # fingerprint
    parameters: int
    tokens: TokenShape


@dataclass(frozen=True)
class Grid:
    """The runs of a benchmark."""

    runs: list[tuple[RunSpec, Paths]]
    skipped: list[Skipped]
    encoders: dict[str, EncoderInfo]  # by name


def make_grid(request: BenchmarkRequest, root: Path) -> Grid:
    """Return all runs. Neighbours are of different tasks, so that few wait for the same demonstrations.

    Args:
        root: folder of the benchmark.

    Raises:
        UnknownName: for a suite, task, encoder, policy, fusion, budget or protocol that does not exist.
        MissingExtra: if the packages of all requested suites are missing.
        BadInput: if a policy cannot be built on an encoder, or nothing is left to run.
    """
    _check_names(request)
    tasks = task_names(request.tasks)
    methods = list_methods(request)
    encoders = dict.fromkeys(each.encoder for each in methods if _is_loaded(each.encoder))
    infos = {name: _inspect(name, [_spec(request, tasks[0], each) for each in methods]) for name in encoders}
    skipped: list[Skipped] = []
    paths = find_paths(Sources(request.demos, request.experts, request.device), tasks, root, skipped)
    hashes = {task: {expert: source_of(each, expert) for expert in (True, False)} for task, each in paths.items()}
    seeds = list(dict.fromkeys(request.seeds or BUDGETS[request.budget].seeds))
    runs = []
    for method in methods:
        why = _why_unbuildable(_spec(request, tasks[0], method), None) if method.encoder in WITHOUT_ENCODER else ""
        possible = []
        for task, task_paths in paths.items():
            if reason := why or _why_not(task, method.encoder, task_paths, request.protocol):
                skipped.append(Skipped(task, str(method), reason))
            else:
                possible.append(task)
        for seed in seeds[:1] if method.encoder == EXPERT else seeds:
            for task in possible:
                weights = infos[method.encoder].weights if method.encoder in infos else ""
                source = hashes[task][method.encoder == EXPERT]
                spec = replace(_spec(request, task, method), seed=seed, weights=weights, source=source)
                runs.append((spec, paths[task]))
    if not runs:
        raise _nothing(skipped)
    return Grid(runs, skipped, infos)


def list_methods(request: BenchmarkRequest) -> list[Method]:
    """Return the rows of the table: every encoder or baseline with every policy and, where both have them, fusion."""
    found = []
    for encoder in dict.fromkeys(map(_absolute, request.encoders)):
        if encoder == EXPERT:
            found.append(Method(encoder, "", ""))
            continue
        for policy in request.policies:
            has_fusion = "fusion" in {each.name for each in fields(find_plugin("policies", policy).Config)}
            fusions = request.fusions if has_fusion and _is_loaded(encoder) else [""]
            found += [Method(encoder, policy, fusion) for fusion in fusions]
    return list(dict.fromkeys(found))


def _is_loaded(encoder: str) -> bool:
    return encoder not in (*WITHOUT_ENCODER, EXPERT)


def _spec(request: BenchmarkRequest, task: str, method: Method) -> RunSpec:
    """Return a run of a task and method without seed, weights and source."""
    return RunSpec(
        task,
        method.encoder,
        method.fusion,
        0,
        request.budget,
        request.protocol,
        request.precision,
        method.policy,
        request.horizon,
    )


def _check_names(request: BenchmarkRequest) -> None:
    for what, name, known in (("budget", request.budget, BUDGETS), ("protocol", request.protocol, PROTOCOLS)):
        if name not in known:
            raise UnknownName(f"no {what} {name!r}{closest(name, known)}; there are: {', '.join(known)}")
    for name in request.fusions:
        if name not in FUSIONS:
            raise UnknownName(f"no fusion {name!r}{closest(name, FUSIONS)}; there are: {', '.join(FUSIONS)}")
    for name in request.policies:
        find_plugin("policies", name)
    if not request.encoders or not request.fusions or not request.policies:
        raise BadInput("encoders=, policies= and fusions= each need at least one name")


def task_names(asked: Any) -> list[str]:
    """Return tasks by name: all of CortexBench's 14, those of a suite, or single ones.

    >>> task_names(["trifinger", "dmc/walker_walk", "trifinger/reach_cube"])
    ['trifinger/reach_cube', 'trifinger/move_cube', 'dmc/walker_walk']
    """
    names: list[str] = []
    for each in [asked] if isinstance(asked, str) else asked or []:
        if each == "all":
            names += TASKS
        elif each in SUITES:
            names += [task for task in TASKS if task.startswith(f"{each}/")]
        elif "/" in str(each):
            protocol_of(each)
            names.append(each)
        else:
            known = ["all", *SUITES]
            raise UnknownName(
                f"no suite {each!r}{closest(str(each), known)}; there are: {', '.join(known)}, or SUITE/TASK"
            )
    if not names:
        raise BadInput(f"tasks= names nothing; it takes all, a suite ({', '.join(SUITES)}), SUITE/TASK, or a list")
    return list(dict.fromkeys(names))


def _inspect(name: str, specs: Sequence[RunSpec]) -> EncoderInfo:
    """Load an encoder, check that the policies of `specs` can be built on it, and return what is known of it.

    Raises:
        UnknownName: if there is no such encoder.
        BadInput: if a policy cannot be built on it.
    """
    backbone = load_encoder(name)
    for spec in specs:
        if spec.encoder == name and (why := _why_unbuildable(spec, backbone)):
            raise BadInput(f"{spec.method} cannot be built: {why}")
    parameters = sum(each.numel() for each in backbone.parameters())
    return EncoderInfo(backbone.fingerprint(), parameters, backbone.token_shape)


def _why_unbuildable(spec: RunSpec, backbone: Backbone | None) -> str:
    """Return why a run's policy cannot be built, or "". The shapes of observations and actions are made up."""
    features = {
        "rgb": Feature("image", (256, 256, 3), "uint8"),
        "proprio": Feature("vector", (4,), "float32"),
        "state": Feature("vector", (8,), "float32"),
        "action": Feature("vector", (4,), "float32"),
    }
    design = spec.design("fp32")
    try:
        build_policy(design, features, ("rgb",) if design.observes_images else (), backbone, 0)
    except BadInput as error:
        return str(error)
    return ""


def _absolute(name: str) -> str:
    """Return an encoder's name so that it means the same in every working directory."""
    file = name if Path(name).exists() else name.rpartition("@")[0]
    return str(Path(file).absolute()) + name.removeprefix(file) if file and Path(file).exists() else name


def _why_not(task: str, encoder: str, paths: Paths, protocol: str) -> str:
    """Return why an encoder, baseline or expert cannot run on a task, or ""."""
    suite = task.split("/")[0]
    if encoder == "none" and suite not in HAS_PROPRIO:
        return "the suite has no proprioception, so a proprioception-only policy would observe nothing"
    if encoder == EXPERT and protocol == BEST_CHECKPOINT:
        return "it is not trained, so it has no checkpoints; protocol=held_out evaluates it"
    if encoder == EXPERT and suite == "adroit" and not paths.expert:
        return ADROIT
    if paths.demos and encoder != EXPERT:
        dataset = open_dataset(paths.demos)
        if encoder == "state" and "state" not in dataset.features:
            return f"{paths.demos} does not hold the privileged state"
        try:
            camera_keys(dataset, protocol_of(task).observation.cameras)
        except UnknownName as error:
            return str(error)
    return ""


def _nothing(skipped: Sequence[Skipped]) -> Exception:
    """Return the error of a benchmark without a run."""
    missing = sorted({each.task.split("/")[0] for each in skipped if "needs the extra" in each.why})
    if len(missing) == 1 and all("needs the extra" in each.why for each in skipped):
        return MissingExtra(f"benchmark tasks={missing[0]}", missing[0])
    return BadInput("nothing can be run: " + "; ".join(f"{each.task}, {each.policy}: {each.why}" for each in skipped))
