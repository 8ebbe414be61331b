"""``result.json`` and the report of pre-training and distillation."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..encoders.load import Backbone
from ..report.page import write_report
from ..run_folder import write_json
from .masking import MaskShape
from .networks import AutoencoderConfig, Size
from .order import Split
from .student_specs import StudentSpec, matches
from .train import TrainResult


def write_pretrain_result(
    out: Path, task: str, config: AutoencoderConfig, shape: MaskShape, split: Split, result: TrainResult
) -> None:
    """Write the result and report of a pre-training run.

    Args:
        task: the images' sources, for display.
    """
    numbers = result.numbers
    files = sorted((out / "images").glob("step-*.png"))
    _write(
        out,
        result,
        {
            "title": f"pre-training {config.encoder}",
            "task": task,
            "facts": {
                "encoder": _described(config.encoder, config.encoder_size),
                "decoder": _described(config.decoder, config.decoder_size),
                "images": _counts(split),
                "masks": f"{shape.ratio:.1%} of {shape.patches} patches hidden, blocks of {shape.block}x{shape.block}",
            },
            "numbers": {
                "validation loss, fixed masks": numbers.get("valid/loss"),
                "training loss": numbers.get("train/loss"),
                "images seen": result.state.samples,
                "images/s": numbers.get("time/images_per_s"),
                "waiting for images": numbers.get("time/waiting_for_data"),
                "TFLOP/s a device": numbers.get("time/tflops_per_device"),
                "share of measured matmul peak": numbers.get("time/share_of_peak"),
                "memory [GB]": numbers.get("time/memory_gb"),
                "cosine between class tokens": numbers.get("features/class_token_cosine"),
                "effective rank of class-token means": numbers.get("features/effective_rank"),
                "k-NN accuracy, class tokens": numbers.get("class_tokens/knn_accuracy"),
                "k-NN accuracy, patch tokens": numbers.get("patches/knn_accuracy"),
                "k-NN accuracy, raw pixels": numbers.get("pixels/knn_accuracy"),
                "skipped non-finite steps": numbers.get("data/skipped_steps"),
                "unreadable images": numbers.get("data/unreadable_images"),
            },
            "images": [
                _image(out, file, f"Validation images after {int(file.stem[5:])} steps")
                for file in (files if len(files) <= 2 else [files[0], files[-1]])
            ],
        },
    )


def write_distill_result(
    out: Path,
    task: str,
    *,
    teacher: Backbone,
    specs: Mapping[str, StudentSpec],
    loss: str,
    split: Split,
    result: TrainResult,
) -> None:
    """Write the result and report of a distillation.

    Args:
        task: the images' sources, for display.
        loss: its description.
    """
    numbers = result.numbers
    names = [*specs, "teacher"]
    files = sorted((out / "images").glob("step-*.png"))[-1:]
    _write(
        out,
        result,
        {
            "title": f"distilling {teacher.name}",
            "task": task,
            "facts": {
                "teacher": f"{teacher.name} ({teacher.weights} weights)",
                "students": "; ".join(matches(teacher, specs)),
                "loss": loss,
                "images": _counts(split),
            },
            "numbers": {
                "validation loss, mean over students": numbers.get("valid/loss"),
                **{f"validation loss, {name}": numbers.get(f"valid/{name}_loss") for name in specs},
                **{f"k-NN accuracy, {name}": numbers.get(f"class_tokens/{name}_knn_accuracy") for name in names},
                "k-NN accuracy, raw pixels": numbers.get("pixels/knn_accuracy"),
                **{f"effective rank, {name}": numbers.get(f"features/{name}_effective_rank") for name in names},
                "images seen": result.state.samples,
                "images/s": numbers.get("time/images_per_s"),
                "waiting for images": numbers.get("time/waiting_for_data"),
                "skipped non-finite steps": numbers.get("data/skipped_steps"),
            },
            "images_title": "Patch tokens of validation images",
            "images": [
                _image(out, file, f"Patch tokens after {int(file.stem[5:])} steps; colours are principal components")
                for file in files
            ],
        },
    )


def _write(out: Path, result: TrainResult, values: dict[str, Any]) -> None:
    values["numbers"] = {name: value for name, value in values["numbers"].items() if value is not None}
    write_json(
        out / "result.json", {**values, "class_token_cosine": result.cosine, "train_state": asdict(result.state)}
    )
    write_report(out)


def _image(out: Path, file: Path, caption: str) -> dict[str, str]:
    return {"file": str(file.relative_to(out)), "caption": caption}


def _counts(split: Split) -> str:
    return f"{split.training} for training, {len(split.evaluated)} for validation"


def _described(name: str, size: Size) -> str:
    words = "x".join(map(str, size))
    return words if words == name else f"{name}: {words}"
