"""Settings shared by pre-training and distillation, and by the dense probes."""

from dataclasses import dataclass
from typing import Any

from ..settings import MISSING, Hardware, key


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
