"""What ``pixio-robot distill`` does, from its settings to its files."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..encoders.load import Backbone, load_encoder
from ..encoders.pixio import PRESETS, PixioEncoder
from ..errors import BadInput
from ..hardware import combine
from ..report.page import write_report
from ..run_folder import settings_digest, write_json
from ..training.distributed import joined
from .commands import Distill
from .distillation import Distillation, StudentPlan, new_students
from .images.image_set import fingerprint
from .masking import mask_shape
from .networks import network_size, start_hash, take_encoder
from .students import LOSSES, PROJECTIONS, WEIGHTINGS, Student, Students
from .train import TrainResult
from .training_run import Prepared, check_names, check_training, prepare, run_training

log = logging.getLogger(__name__)
MASK_FROM = 1280  # width from which students are masked unless told otherwise, as published for 1B and H
_KEYS = ("size", "patch", "image_size", "cls_tokens", "mask_ratio", "mask_block", "drop_path", "start")


@dataclass
class DistillResult:
    """Where distillation ended."""

    encoders: list[Path]
    trained: TrainResult


def run_distill(command: Distill) -> tuple[Path, DistillResult]:
    """Distil a teacher into students, or go on with it; return the run folder and where it ended."""
    check_distill(command)
    teacher = load_encoder(command.teacher)
    plans = student_plans(command, teacher)
    with joined(command.device) as world:
        training = prepare(command, world)
        starts = [start_hash(plan.start) for plan in plans.values() if plan.start]
        training.inputs = fingerprint([training.inputs, teacher.fingerprint(), *starts])
        out = Path(command.out or f"runs/distill/{settings_digest(command, training.inputs)}")
        if world.first:
            log.info("%s", training.summary)
            for line in matches(teacher, plans):
                log.info("%s", line)
        model = initialised(command, plans, teacher.token_shape.dim)
        objective = Distillation(teacher, plans, model, command.projection, normed=command.target == "normed")
        result = run_training(training, objective, out)
        encoders = [out / f"{name}.safetensors" for name in plans]
        if world.first and not (out / "result.json").is_file():
            _write_result(out, command, training, plans, teacher, result)
    return out, DistillResult(encoders, result)


def check_distill(command: Distill) -> None:
    """Refuse impossible settings before any work.

    Raises:
        BadInput, UnknownName: naming the setting, what it is and what it may be.
    """
    check_training(command, drop_path=command.drop_path or 0.0)
    check_names(
        ("activation_checkpointing", command.activation_checkpointing, ("none", "all")),
        ("projection", command.projection, PROJECTIONS),
        ("target", command.target, ("raw", "normed")),
        ("loss", command.loss, LOSSES),
        ("weighting", command.weighting, WEIGHTINGS),
    )


def student_plans(command: Distill, teacher: Backbone) -> dict[str, StudentPlan]:
    """Return the students of the settings by name.

    Raises:
        BadInput, UnknownName: naming the student and the setting that cannot be.
    """
    students = [command.students] if isinstance(command.students, str) else command.students
    if isinstance(students, list):
        students = {str(size): {"size": str(size)} for size in students}
    if not isinstance(students, dict) or not students:
        raise BadInput(f"students={command.students} must be sizes, students=[s,ti], or {{NAME:{{size:s}}}}")
    return {str(name): _plan(str(name), values, command, teacher) for name, values in students.items()}


def _plan(name: str, values: Any, command: Distill, teacher: Backbone) -> StudentPlan:
    if not isinstance(values, dict):
        raise BadInput(f"student {name!r} has {values}; it must have settings, as in {name}:{{size:s}}")
    if unknown := [key for key in values if key not in _KEYS]:
        raise BadInput(f"student {name!r} has {', '.join(unknown)}; it may have: {', '.join(_KEYS)}")
    if not name.replace("-", "").replace("_", "").isalnum() or name in ("encoder", "autoencoder", "teacher"):
        raise BadInput(f"{name!r} cannot name a student: letters, digits, - and _, and not 'teacher'")
    chosen: dict[str, Any] = {key: values.get(key, getattr(command, key, None)) for key in _KEYS}
    width, depth, heads = network_size("student", str(chosen["size"] or name), PRESETS)
    known = teacher.network if isinstance(teacher.network, PixioEncoder) else None
    patch = int(chosen["patch"] or (known.patch if known else 16))
    size = int(chosen["image_size"] or max(teacher.preprocessing.size) // patch * patch)
    if size % patch:
        raise BadInput(f"student {name!r}: image_size {size} is not a multiple of patch {patch}")
    ratio = chosen["mask_ratio"] if chosen["mask_ratio"] is not None else (0.5 if width >= MASK_FROM else 0.0)
    side = size // patch
    shape = mask_shape((side, side), ratio, chosen["mask_block"]) if ratio else None
    drop = chosen["drop_path"] if chosen["drop_path"] is not None else (0.4 if shape else 0.1)
    arguments: dict[str, Any] = dict(dim=width, depth=depth, heads=heads, patch=patch, image_size=size)
    arguments |= dict(cls_tokens=int(chosen["cls_tokens"]), drop_path=float(drop))
    return StudentPlan(arguments, shape, chosen["start"] and str(chosen["start"]))


def matches(teacher: Backbone, plans: dict[str, StudentPlan]) -> list[str]:
    """Say how each student's tokens meet the teacher's."""
    lines = []
    shape = teacher.token_shape
    for name, plan in plans.items():
        grid = f"{plan.grid[0]}x{plan.grid[1]}"
        patches = f"patches one to one on {grid}"
        if plan.grid != shape.grid:
            patches = f"the teacher's {shape.grid[0]}x{shape.grid[1]} patches resampled to {grid}"
        cls = f"{shape.cls} class tokens one to one"
        if plan.arguments["cls_tokens"] != shape.cls:
            cls = f"the mean of {plan.arguments['cls_tokens']} class tokens to the mean of the teacher's {shape.cls}"
        hidden = f"{plan.shape.ratio:.0%} of the patches hidden" if plan.shape else "nothing hidden"
        start = f", first weights of {plan.start}" if plan.start else ""
        lines.append(f"student {name}: width {plan.arguments['dim']} to {shape.dim}, {patches}, {cls}, {hidden}{start}")
    return lines


def initialised(command: Distill, plans: dict[str, StudentPlan], teacher_dim: int) -> Students:
    """Return the students with their first weights; drawn ones are the same for a student alone and beside others.

    Raises:
        CheckpointError: if a student's first weights are of another network.
    """
    with torch.device("meta"):
        model = new_students(plans, teacher_dim, command.projection, command.loss, command.weighting)
    model.to_empty(device="cpu")
    for name, student in model.students.items():
        assert isinstance(student, Student)
        student.initialise(torch.Generator().manual_seed(combine(command.seed, 0)))
        if (start := plans[name].start) is not None:
            take_encoder(student.encoder, start)
    return model


def _write_result(
    out: Path,
    command: Distill,
    training: Prepared,
    plans: dict[str, StudentPlan],
    teacher: Backbone,
    result: TrainResult,
) -> None:
    numbers = result.numbers
    names = [*plans, "teacher"]
    shown = {
        "held-out loss, mean over students": numbers.get("valid/loss"),
        **{f"held-out loss, {name}": numbers.get(f"valid/{name}_loss") for name in plans},
        **{f"k-NN accuracy, {name}": numbers.get(f"class_tokens/{name}_knn_accuracy") for name in names},
        "k-NN accuracy, raw pixels": numbers.get("pixels/knn_accuracy"),
        **{f"effective rank, {name}": numbers.get(f"features/{name}_effective_rank") for name in names},
        "images seen": result.position.samples,
        "images/s": numbers.get("time/images_per_s"),
        "waiting for images": numbers.get("time/waiting_for_data"),
        "steps skipped as not finite": numbers.get("data/skipped_steps"),
    }
    images = sorted((out / "images").glob("step-*.png"))[-1:]
    write_json(
        out / "result.json",
        {
            "title": f"distilling {command.teacher}",
            "task": ", ".join([command.images] if isinstance(command.images, str) else command.images),
            "facts": {
                "teacher": f"{command.teacher} ({teacher.weights} weights)",
                "students": "; ".join(matches(teacher, plans)),
                "loss": f"{command.loss}, tokens weighted {command.weighting}, {command.target} targets",
                "images": f"{training.split.training} trained on, {len(training.split.evaluated)} held out",
            },
            "numbers": {name: value for name, value in shown.items() if value is not None},
            "images_title": "Patch tokens of held-out images",
            "images": [
                {
                    "file": str(path.relative_to(out)),
                    "caption": f"Patch tokens after {int(path.stem[5:])} steps; colours are main directions",
                }
                for path in images
            ],
            "class_token_cosine": result.cosine,
            "position": asdict(result.position),
        },
    )
    write_report(out)
