"""What ``pixio-robot pretrain`` does, from its settings to its files. Reads downwards; the work is in what it calls."""

import logging
from dataclasses import asdict
from pathlib import Path

import torch

from ..errors import BadInput
from ..hardware import choose_device, choose_precision
from ..report.page import write_report
from ..run_folder import settings_digest, write_json
from ..training.distributed import joined, micro_batches
from .commands import Pretrain
from .images.sources import open_images
from .masking import MaskShape, mask_shape
from .networks import build_autoencoder, new_autoencoder, sizes, start_hash
from .order import Split
from .plan import DEVICES, Plan, plan
from .reconstruction import Reconstruction
from .train import TrainResult
from .training_run import check_names, check_training, count_steps, order_of, prepare, run_training, split_images

log = logging.getLogger(__name__)
POSITIONS = ("sincos", "normal")


def run_pretrain(command: Pretrain) -> tuple[Path, TrainResult]:
    """Pre-train an encoder, or go on with it; return the run folder and where it ended."""
    shape = check_settings(command)
    with joined(command.device) as world:
        training = prepare(command, world)
        training.inputs = f"{training.inputs} {start_hash(command.start)}".rstrip()
        out = Path(command.out or f"runs/pretrain/{settings_digest(command, training.inputs)}")
        if world.first:
            log.info("%s; %.2f%% of %d patches hidden", training.summary, 100 * shape.ratio, shape.patches)
        result = run_training(training, Reconstruction(new_autoencoder(command), shape, command.cls_only), out)
        if world.first and not (out / "result.json").is_file():
            _write_result(out, command, training.split, shape, result)
    return out, result


def run_plan(command: Pretrain) -> Plan:
    """Say what a run would cost; trains nothing."""
    shape = check_settings(command)
    device = choose_device(command.device)
    images = open_images(command.images, Path(command.cache)) if command.steps is None else None
    steps = command.steps
    if images is not None:
        steps = count_steps(command, order_of(images, split_images(images, command), command)[0])
    assert steps is not None
    micro_batches(command.batch, command.micro_batch, command.plan_devices)
    precision = "bf16" if command.plan_device != "here" else choose_precision(command.precision, device)
    if precision == "bf16" and command.precision == "fp32":
        raise BadInput("other devices are planned for bf16, whose peak is known; drop precision=fp32 or plan_device=")
    with torch.device("meta"):
        model = build_autoencoder(command)
    return plan(model, shape, command, steps, device, precision)


def check_settings(command: Pretrain) -> MaskShape:
    """Refuse impossible settings before any work; return how much the masks hide.

    Raises:
        BadInput, UnknownName: naming the setting, what it is and what it may be.
    """
    if command.image_size % command.patch:
        side = command.image_size // command.patch * command.patch
        near = " or ".join(str(each) for each in (side, side + command.patch) if each)
        raise BadInput(f"image_size={command.image_size} is not a multiple of patch={command.patch}; take {near}")
    side = command.image_size // command.patch
    shape = mask_shape((side, side), command.mask_ratio, command.mask_block)
    sizes(command)
    check_training(command, drop_path=command.drop_path)
    if not 0 <= command.cls_only <= 1:
        raise BadInput(f"cls_only={command.cls_only} is a share of the images; it must lie from 0 to 1")
    check_names(
        ("positions", command.positions, POSITIONS),
        ("plan_device", command.plan_device, ("here", *DEVICES)),
        ("activation_checkpointing", command.activation_checkpointing, ("none", "decoder", "all")),
    )
    return shape


def _named(name: str, size: tuple[int, int, int]) -> str:
    words = "x".join(map(str, size))
    return words if words == name else f"{name}: {words}"


def _write_result(out: Path, command: Pretrain, split: Split, shape: MaskShape, result: TrainResult) -> None:
    encoder, decoder = sizes(command)
    position, numbers = result.position, result.numbers
    images = sorted((out / "images").glob("step-*.png"))
    chosen = images if len(images) <= 2 else [images[0], images[-1]]
    facts = {
        "encoder": _named(command.encoder, encoder),
        "decoder": _named(command.decoder, decoder),
        "images": f"{split.training} trained on, {len(split.evaluated)} held out",
        "hidden": f"{shape.ratio:.1%} of {shape.patches} patches, blocks of {shape.block}x{shape.block}",
    }
    shown = {
        "held-out loss, fixed masks": numbers.get("valid/loss"),
        "training loss": numbers.get("train/loss"),
        "images seen": position.samples,
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
        "steps skipped as not finite": numbers.get("data/skipped_steps"),
        "unreadable images": numbers.get("data/unreadable_images"),
    }
    write_json(
        out / "result.json",
        {
            "title": f"pre-training {command.encoder}",
            "task": ", ".join([command.images] if isinstance(command.images, str) else command.images),
            "facts": facts,
            "numbers": {name: value for name, value in shown.items() if value is not None},
            "images": [
                {"file": str(path.relative_to(out)), "caption": f"Held-out images after {int(path.stem[5:])} steps"}
                for path in chosen
            ],
            "class_token_cosine": result.cosine,
            "position": asdict(position),
        },
    )
    write_report(out)
