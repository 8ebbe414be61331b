"""The commands pretrain and distill: their settings and what they do."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..command import Command
from ..errors import BadInput, UnknownName, closest
from ..settings import MISSING, Hardware, key

if TYPE_CHECKING:
    from pathlib import Path

    from ..training.distributed import World
    from .cost import Cluster, CostEstimate
    from .masking import MaskShape
    from .networks import AutoencoderConfig
    from .objective import Objective
    from .student_specs import StudentDefaults
    from .train import TrainResult
    from .train_config import TrainConfig
    from .training_set import DataConfig, TrainingSet


@dataclass
class Training(Hardware):
    """Settings that pre-training and distillation share."""

    images: Any = key(
        MISSING, "folder or file of images, tar shards, HDF5, videos or recordings; or a list of them", free=True
    )
    val_images: int = key(256, "validation images, kept out of training, for the loss on fixed masks", least=1)
    crop_scale: list[float] = key([0.2, 1.0], "least and greatest share of an image's area in a crop")
    flip: bool = key(False, "mirror half of the crops")
    shuffle_block: int | None = key(
        None, "images that are stored and visited together; null is 32 for videos, else 1", least=1
    )
    weights: str | None = key(
        None, "weights.parquet of curate: each epoch draws images by them; null draws all", free=True
    )
    batch: int = key(256, "images a step, over all processes", least=1)
    micro_batch: int | None = key(None, "images a forward pass and process; null means all at once", least=1, free=True)
    steps: int | None = key(None, "optimiser steps; or set epochs", least=1)
    epochs: float | None = key(None, "passes over the training images; or set steps")
    lr: float | None = key(None, "highest learning rate, absolute; or set base_lr")
    base_lr: float | None = key(None, "highest learning rate for 256 images a step; times batch / 256")
    warmup: float = key(0.1, "share of the steps in which the learning rate rises")
    weight_decay: float = key(0.05, "AdamW weight decay, not on biases and norms")
    beta1: float = key(0.9, "AdamW decay of the gradient's mean")
    beta2: float = key(0.95, "AdamW decay of the gradient's square")
    clip: float | None = key(None, "largest gradient norm; null means no clipping", free=True)
    abort_after: int = key(3, "non-finite steps in a row that end the run", least=1, free=True)
    seed: int = key(0, "seed of weights, order, crops and masks", least=0)
    parallel: str = key("auto", "under torchrun: ddp, fsdp, hsdp; auto is ddp below 1e9 parameters", free=True)
    compile: bool = key(False, "torch.compile each block", free=True)
    activation_checkpointing: str = key(
        "none", "blocks whose activations are computed twice to save memory: none, decoder, all", free=True
    )
    workers: int = key(
        1, "processes that read images, for each training process; 0 reads in the training process", least=0, free=True
    )
    cache: str = key("runs/cache", "folder of the image indexes", free=True)
    log_every: int = key(20, "steps between rows of metrics.jsonl", least=1, free=True)
    valid_every: int = key(200, "steps between validation losses and feature statistics", least=1, free=True)
    visualize_every: int = key(500, "steps between images of the model's output", least=1, free=True)
    save_every: int = key(500, "steps between checkpoints", least=1, free=True)
    keep_last: int = key(2, "latest checkpoints to keep", least=1, free=True)
    keep_every: int | None = key(None, "also keep checkpoints of steps divisible by this", least=1, free=True)
    wandb: str | None = key(None, "Weights & Biases project; null means none", free=True)


@dataclass
class Pretrain(Training):
    """Train an encoder by masked reconstruction of images."""

    encoder: str = key("ti", "size: ti, s, b, l, h, 1b, 5b, or WIDTHxDEPTHxHEADS")
    decoder: str = key("auto", "ti, s, b, reference, mae, or WIDTHxDEPTHxHEADS; auto goes with the encoder")
    patch: int = key(16, "side of a patch [px]", least=1)
    image_size: int = key(256, "side of the training crops [px]", least=1)
    cls_tokens: int = key(8, "class tokens", least=1)
    drop_path: float = key(0.0, "stochastic depth rate of the last encoder block")
    positions: str = key("sincos", "initial position tables: sincos (shorter plateau), normal (as published)")
    init_from: str | None = key(
        None, "initial weights: a run folder of pretrain, its autoencoder, or an encoder; null draws them", free=True
    )
    mask_ratio: float = key(0.75, "share of patches to hide")
    mask_block: int = key(4, "side of the blocks that are hidden together [patches]", least=1)
    norm_pixels: bool = key(True, "normalise each target patch")
    cls_only: float = key(0.0, "share of the images that are decoded from their class tokens only; published 0")
    plan: bool = key(False, "only print an estimate of time and memory", free=True)
    plan_device: str = key(
        "here", "device to estimate for: here, " + ", ".join(("h100", "h200", "a100", "l40s", "rtx4090")), free=True
    )
    plan_devices: int = key(1, "number of these devices", least=1, free=True)
    out: str | None = key(None, "run folder; null means runs/pretrain/<digest of the settings>", free=True)


@dataclass
class Distill(Training):
    """Train small encoders to predict the tokens of a large one, several at once."""

    teacher: str = key(MISSING, "encoder, as load_encoder takes it; hf: and timm: models too", free=True)
    students: Any = key(
        MISSING,
        "sizes ti, s, b, l, h, 1b or WIDTHxDEPTHxHEADS; or {NAME:{size:s,patch:16,image_size:256,init_from:FILE}, ...}",
    )
    patch: int | None = key(None, "side of the students' patches [px]; null is the teacher's, or 16", least=1)
    image_size: int | None = key(None, "side of the students' images [px]; null is the teacher's", least=1)
    cls_tokens: int = key(8, "class tokens of the students", least=1)
    mask_ratio: float | None = key(None, "patches hidden from a student; null is 0.5 from width 1280, else 0")
    mask_block: int = key(4, "side of the blocks that are hidden together [patches]", least=1)
    drop_path: float | None = key(None, "stochastic depth rate; null is 0.4 where patches are hidden, else 0.1")
    projection: str = key("mlp", "between a student's width and the teacher's: mlp (as published), linear, none")
    target: str = key("raw", "the teacher's tokens: raw (before its final norm, as published), normed")
    loss: str = key("cosine", "loss between tokens: cosine (as published), l1, mse")
    weighting: str = key("equal", "class and patch tokens: equal (as published), count (by their number)")
    out: str | None = key(None, "run folder; null means runs/distill/<digest of the settings>", free=True)


class PretrainValues(NamedTuple):
    """The settings of pretrain as values of its parts, checked."""

    network: "AutoencoderConfig"
    shape: "MaskShape"
    data: "DataConfig"
    training: "TrainConfig"
    cluster: "Cluster"


def pretrain_values(settings: Pretrain) -> PretrainValues:
    """Check the settings of pretrain before any work.

    Raises:
        BadInput, UnknownName: naming the setting, its value and what is possible.
    """
    from .cost import Cluster
    from .masking import mask_shape
    from .networks import AutoencoderConfig

    names = ("encoder", "decoder", "patch", "image_size", "cls_tokens", "drop_path", "positions", "norm_pixels")
    network = AutoencoderConfig(**{name: getattr(settings, name) for name in names}, init_from=settings.init_from)
    shape = mask_shape(network.grid, settings.mask_ratio, settings.mask_block)
    if not 0 <= settings.cls_only <= 1:
        raise BadInput(f"cls_only={settings.cls_only} is a share of the images; it must lie from 0 to 1")
    _check_name(settings, "activation_checkpointing", ("none", "decoder", "all"))
    cluster = Cluster(settings.plan_device, settings.plan_devices)
    return PretrainValues(network, shape, data_config(settings), train_config(settings), cluster)


def distill_values(settings: Distill) -> "tuple[StudentDefaults, DataConfig, TrainConfig]":
    """Check the settings of distill, but for the students', which need the teacher.

    Raises:
        BadInput, UnknownName: naming the setting, its value and what is possible.
    """
    from .student_specs import StudentDefaults
    from .students import LOSSES, PROJECTIONS, WEIGHTINGS

    _check_name(settings, "activation_checkpointing", ("none", "all"))
    _check_name(settings, "projection", PROJECTIONS)
    _check_name(settings, "target", ("raw", "normed"))
    _check_name(settings, "loss", LOSSES)
    _check_name(settings, "weighting", WEIGHTINGS)
    names = ("patch", "image_size", "cls_tokens", "mask_ratio", "mask_block", "drop_path")
    defaults = StudentDefaults(**{name: getattr(settings, name) for name in names})
    return defaults, data_config(settings), train_config(settings)


def data_config(settings: Training) -> "DataConfig":
    """Return which images to train on.

    Raises:
        BadInput: if `images` names no source.
    """
    from pathlib import Path

    from .training_set import DataConfig

    weights = None if settings.weights is None else Path(settings.weights)
    return DataConfig(settings.images, settings.val_images, settings.shuffle_block, weights, Path(settings.cache))


def train_config(settings: Training) -> "TrainConfig":
    """Return how to train.

    Raises:
        BadInput, UnknownName: naming the setting, its value and what is possible.
    """
    from ..run_folder import binding_settings
    from ..training.metric_log import WandbRun
    from ..training.optim import peak_lr
    from .images.crops import Cropping
    from .loader import Batching
    from .train_config import Execution, Length, Logging, Optimisation, TrainConfig

    scale = settings.crop_scale
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise BadInput(f"crop_scale={scale} must be two shares of the area, e.g. [0.2,1.0]")
    cropping = Cropping(scale=(scale[0], scale[1]), flip=settings.flip)
    names = ("warmup", "weight_decay", "beta1", "beta2", "clip", "abort_after")
    intervals = ("log_every", "valid_every", "visualize_every", "save_every", "keep_last", "keep_every")
    wandb = None if settings.wandb is None else WandbRun(settings.wandb, asdict(settings))
    return TrainConfig(
        seed=settings.seed,
        length=Length(settings.steps, settings.epochs),
        batching=Batching(settings.batch, settings.micro_batch, settings.workers, cropping),
        optimisation=Optimisation(
            peak_lr(settings.lr, settings.base_lr, settings.batch), **{name: getattr(settings, name) for name in names}
        ),
        execution=Execution(settings.parallel, settings.compile, settings.activation_checkpointing),
        logging=Logging(**{name: getattr(settings, name) for name in intervals}, wandb=wandb),
        recorded=binding_settings(settings),
    )


def run_pretrain(settings: Pretrain) -> int:
    """Pre-train an encoder, or print what it would cost."""
    from ..report.tables import print_plan
    from ..training.distributed import is_first_process

    if settings.plan:
        cost = pretrain_cost(settings)
        print_plan(cost.rows, cost.assumptions)
        return 0
    out, result = pretrain(settings)
    if is_first_process():
        loss = result.numbers["valid/loss"]
        encoder = out / "encoder.safetensors"
        print(f"{encoder}: validation loss {loss:.4f} after {result.state.samples} images")
        print(f"{out / 'report.html'}: curves and reconstructions; load the encoder with encoder={encoder}")
    return 0


def pretrain(settings: Pretrain) -> "tuple[Path, TrainResult]":
    """Pre-train an encoder, or resume; return the run folder and where training ended."""
    import logging
    from pathlib import Path

    from ..run_folder import settings_digest
    from ..training.distributed import joined
    from .networks import init_from_hash, new_autoencoder
    from .reconstruction import MaskedReconstruction
    from .results import write_pretrain_result
    from .training_set import open_training_set

    network, shape, source, config, _ = pretrain_values(settings)
    with joined(settings.device) as world:
        _check_batch(config, world)
        data = open_training_set(source, settings.batch, settings.seed, world)
        data = data.with_fingerprint(f"{data.fingerprint} {init_from_hash(settings.init_from)}".rstrip())
        out = Path(settings.out or f"runs/pretrain/{settings_digest(settings, data.fingerprint)}")
        if world.first:
            hidden = f"{shape.ratio:.2%} of {shape.patches} patches hidden"
            logging.getLogger(__name__).info("%s; %s", config.summary(data, world), hidden)
        objective = MaskedReconstruction(new_autoencoder(network, settings.seed), shape, settings.cls_only)
        result = _train(settings, objective, data, config, world, out)
        if world.first and not (out / "result.json").is_file():
            write_pretrain_result(out, _sources(settings), network, shape, data.split, result)
    return out, result


def pretrain_cost(settings: Pretrain) -> "CostEstimate":
    """Return what a run of pretrain would cost; trains nothing."""
    import torch

    from ..hardware import choose_device, choose_precision
    from ..training.distributed import World, micro_batches
    from .cost import estimate_cost
    from .networks import build_autoencoder
    from .training_set import open_training_set

    network, shape, source, config, cluster = pretrain_values(settings)
    device = choose_device(settings.device)
    if settings.steps is None:
        steps = config.steps(open_training_set(source, settings.batch, settings.seed, World(device)))
    else:
        steps = settings.steps
    micro_batches(settings.batch, settings.micro_batch, cluster.count)
    precision = "bf16" if cluster.device != "here" else choose_precision(settings.precision, device)
    if precision == "bf16" and settings.precision == "fp32":
        raise BadInput(
            f"the peaks of other devices are known for bf16 only; remove precision=fp32 or plan_device={cluster.device}"
        )
    with torch.device("meta"):
        model = build_autoencoder(network)
    return estimate_cost(
        model, shape, config.batching, config.execution, cluster, steps=steps, device=device, precision=precision
    )


def run_distill(settings: Distill) -> int:
    """Distil a teacher into students."""
    from ..training.distributed import is_first_process

    out, encoders, result = distill(settings)
    if is_first_process():
        for encoder in encoders:
            print(f"{encoder}: load it with encoder={encoder}")
        loss = result.numbers["valid/loss"]
        print(f"{out / 'report.html'}: validation loss {loss:.4f} after {result.state.samples} images")
    return 0


def distill(settings: Distill) -> "tuple[Path, list[Path], TrainResult]":
    """Distil a teacher into students, or resume; return the run folder, the encoders and where training ended."""
    import logging
    from pathlib import Path

    from ..encoders.load import load_encoder
    from ..run_folder import settings_digest
    from ..training.distributed import joined
    from .distillation import Distillation
    from .images.image_set import fingerprint
    from .networks import init_from_hash
    from .results import write_distill_result
    from .student_specs import blank_students, initialise_students, matches, student_specs
    from .training_set import open_training_set

    defaults, source, config = distill_values(settings)
    teacher = load_encoder(settings.teacher)
    specs = student_specs(settings.students, defaults, teacher)
    with joined(settings.device) as world:
        _check_batch(config, world)
        data = open_training_set(source, settings.batch, settings.seed, world)
        initial = [init_from_hash(spec.init_from) for spec in specs.values() if spec.init_from]
        data = data.with_fingerprint(fingerprint([data.fingerprint, teacher.fingerprint(), *initial]))
        out = Path(settings.out or f"runs/distill/{settings_digest(settings, data.fingerprint)}")
        if world.first:
            for line in (config.summary(data, world), *matches(teacher, specs)):
                logging.getLogger(__name__).info("%s", line)
        model = blank_students(specs, teacher.token_shape.dim, settings.projection, settings.loss, settings.weighting)
        initialise_students(model, specs, settings.seed)
        objective = Distillation(teacher, specs, model, normed=settings.target == "normed")
        result = _train(settings, objective, data, config, world, out)
        if world.first and not (out / "result.json").is_file():
            loss = f"{settings.loss}, tokens weighted {settings.weighting}, {settings.target} targets"
            write_distill_result(
                out, _sources(settings), teacher=teacher, specs=specs, loss=loss, split=data.split, result=result
            )
    return out, [out / f"{name}.safetensors" for name in specs], result


def _check_batch(config: "TrainConfig", world: "World") -> None:
    from ..training.distributed import micro_batches

    micro_batches(config.batching.batch, config.batching.micro_batch, world.size)


def _train(
    settings: Training,
    objective: "Objective",
    data: "TrainingSet",
    config: "TrainConfig",
    world: "World",
    out: "Path",
) -> "TrainResult":
    """Make the run folder and train, or resume."""
    from contextlib import nullcontext

    from ..hardware import choose_precision, keep_memory
    from ..progress import silent
    from ..run_folder import open_run
    from .train import train

    if world.device.type == "cpu":
        keep_memory()
    precision = choose_precision(settings.precision, world.device)
    if world.first:
        open_run(out, settings, data.fingerprint)
    world.wait()
    with nullcontext() if world.first else silent():
        return train(objective, data, config, precision=precision, world=world, out=out)


def _sources(settings: Training) -> str:
    return ", ".join([settings.images] if isinstance(settings.images, str) else settings.images)


def _check_name(settings: Training, key: str, known: tuple[str, ...]) -> None:
    if (name := getattr(settings, key)) not in known:
        raise UnknownName(f"no {key} {name!r}; there are: {', '.join(known)}{closest(name, known)}")


COMMANDS = {
    "pretrain": Command(Pretrain, run_pretrain, {"recipe": "laptop"}),
    "distill": Command(Distill, run_distill, values={"lr": 0.001, "clip": 1.0}),
}
