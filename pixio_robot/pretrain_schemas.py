"""The keys of the commands that train encoders, choose their images and say what they are good for."""

from dataclasses import dataclass, field
from typing import Any

from .keys import MISSING, Hardware, key


@dataclass
class Training(Hardware):
    """What training by reconstruction and by distillation have in common."""

    images: Any = key(
        MISSING, "folder or file of images, tar shards, HDF5, videos or recordings; or a list of them", free=True
    )
    val_images: int = key(256, "images kept out of training, for the loss on fixed masks", least=1)
    crop_scale: list[float] = key([0.2, 1.0], "least and greatest share of an image's area in a crop")
    flip: bool = key(False, "mirror half of the crops")
    shuffle_block: int | None = key(
        None, "images that lie together and are visited together; null is 32 for videos, else 1", least=1
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
    valid_every: int = key(200, "steps between held-out losses and feature statistics", least=1, free=True)
    visualize_every: int = key(500, "steps between images of reconstructions", least=1, free=True)
    save_every: int = key(500, "steps between checkpoints", least=1, free=True)
    keep_last: int = key(2, "newest checkpoints to keep", least=1, free=True)
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
    positions: str = key("sincos", "first position tables: sincos (shorter plateau), normal (as published)")
    start: str | None = key(
        None, "weights to begin with: a run folder of pretrain, its autoencoder, or an encoder; null draws", free=True
    )
    mask_ratio: float = key(0.75, "share of patches to hide")
    mask_block: int = key(4, "side of the blocks that are hidden together [patches]", least=1)
    norm_pixels: bool = key(True, "normalise each target patch")
    cls_only: float = key(0.0, "share of the images that are decoded from their class tokens alone; published 0")
    plan: bool = key(False, "only print what the settings would cost", free=True)
    plan_device: str = key(
        "here", "device to plan for: here, " + ", ".join(("h100", "h200", "a100", "l40s", "rtx4090")), free=True
    )
    plan_devices: int = key(1, "number of them", least=1, free=True)
    out: str | None = key(None, "run folder; null means runs/pretrain/<digest of the settings>", free=True)


@dataclass
class Distill(Training):
    """Train small encoders to give the tokens of a large one, several at once."""

    teacher: str = key(MISSING, "encoder, as load_encoder takes it; hf: and timm: models too", free=True)
    students: Any = key(
        MISSING,
        "sizes ti, s, b, l, h, 1b or WIDTHxDEPTHxHEADS; or {NAME:{size:s,patch:16,image_size:256,start:FILE}, ...}",
    )
    patch: int | None = key(None, "side of the students' patches [px]; null is the teacher's, or 16", least=1)
    image_size: int | None = key(None, "side of the students' images [px]; null is the teacher's", least=1)
    cls_tokens: int = key(8, "class tokens of the students", least=1)
    mask_ratio: float | None = key(None, "patches hidden from a student; null is 0.5 from width 1280 on, else 0")
    mask_block: int = key(4, "side of the blocks that are hidden together [patches]", least=1)
    drop_path: float | None = key(None, "stochastic depth rate; null is 0.4 where patches are hidden, else 0.1")
    projection: str = key("mlp", "between a student's width and the teacher's: mlp (as published), linear, none")
    target: str = key("raw", "the teacher's tokens: raw (before its final norm, as published), normed")
    loss: str = key("cosine", "loss between tokens: cosine (as published), l1, mse")
    weighting: str = key("equal", "class and patch tokens: equal (as published), count (by their number)")
    out: str | None = key(None, "run folder; null means runs/distill/<digest of the settings>", free=True)


@dataclass
class Score(Hardware):
    """Score images by masked reconstruction: one Parquet file a tar shard."""

    images: Any = key(MISSING, "tar shards: folder, file, pattern, or a list of them", free=True)
    model: str = key(MISSING, "autoencoder.safetensors, or the run folder of pretrain that holds it")
    masks: int = key(2, "masks an image; its loss is their mean", least=1)
    mask_ratio: float | None = key(None, "share of patches to hide; null is the model's own")
    mask_block: int | None = key(None, "side of the masks' blocks [patches]; null is the model's own", least=1)
    batch: int = key(32, "images a forward pass", least=1)
    engine: str = key("auto", "auto, local, torchrun, slurm, ray", free=True)
    workers: int | None = key(None, "processes or Ray actors; null is one a core or GPU", least=1, free=True)
    readers: int = key(1, "threads of a worker that read and decode ahead", least=1, free=True)
    out: str | None = key(None, "folder of the scores; null means runs/scores/<digest of the settings>", free=True)


@dataclass
class Curate:
    """Turn scores into weights, the probability of drawing each image in an epoch."""

    scores: str | None = key(None, "folder that score wrote; or give official", free=True)
    official: str | None = key(None, "root of JSON statistics in Pixio's own format; or give scores", free=True)
    images: Any = key(None, "the scored shards, for examples in the report; required by official", free=True)
    entropy: float | None = key(4.5, "colour entropy that images must exceed [bits]; null leaves none out")
    least_side: int = key(320, "least height and width of an image [px]", least=0)
    temperature: float = key(1.0, "weight = min(1, loss^(1/temperature)); above 1 evens out, below 1 sharpens")
    cap: float | None = key(None, "most images expected an epoch from one folder of shards; null means no cap")
    examples: int = key(24, "images on each example sheet", least=0)
    out: str | None = key(None, "run folder; null means runs/curate/<digest of settings and scores>", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class DenseSettings:
    """How heads for depth and segmentation are trained on frozen tokens. Published: 45,000 steps of 32 images."""

    train_images: int = key(600, "training images at most, evenly spaced; their features are kept in memory", least=2)
    test_images: int = key(200, "test images at most, evenly spaced", least=1)
    epochs: int = key(20, "passes over the training images; the last counts", least=1)
    batch: int = key(16, "training images a step", least=2)
    linear_rate: float = key(1e-2, "learning rate of the linear heads (AdamW); published 2e-4")
    dpt_rate: float = key(1e-3, "learning rate of the DPT heads (AdamW); published 1e-4")
    weight_decay: float = key(0.01, "weight decay of the heads")
    widths: str = key("small", "size of the DPT heads: small, base, published (for large encoders)")
    max_depth: float | None = key(None, "greatest depth that counts [m]; null means 1.25 times the largest of training")


@dataclass
class Probe(Hardware):
    """Say what frozen encoders' features are good for: neighbours, linear probes, depth and segmentation heads."""

    encoder: Any = key(MISSING, "encoder, as load_encoder takes it, or a list of them to compare")
    images: Any = key(MISSING, "images to learn from, with labels or depth: folder, tar shards, HDF5", free=True)
    test: Any = key(None, "such images to test on; null holds some of images out", free=True)
    probes: list[str] = key(
        ["auto"], "knn, linear, depth_linear, depth_dpt, segmentation_linear, segmentation_dpt; auto is knn and linear"
    )
    layers: str = key("last", "blocks to probe: last, or all (Pixio encoders only)")
    val_images: float = key(0.2, "without test: images to test on, a share below 1 or a number")
    seed: int = key(0, "seed of the held-out choice and of the images that choose the weight decay", least=0)
    dense: DenseSettings = field(default_factory=DenseSettings)
    cache: str = key("runs/cache", "folder of the image indexes", free=True)
    out: str | None = key(None, "run folder; null means runs/probe/<digest of settings, images, encoders>", free=True)
