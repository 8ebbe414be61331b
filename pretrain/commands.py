"""The commands pretrain, distill, score, curate and probe."""

from dataclasses import dataclass, field
from typing import Any

from ..command import Command
from ..settings import MISSING, Hardware, key
from .settings import DenseSettings, Training


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


def _pretrain(command: Pretrain) -> int:
    from ..report.tables import print_plan
    from ..training.distributed import is_first_process
    from .runs import run_plan, run_pretrain

    if command.plan:
        cost = run_plan(command)
        print_plan(cost.rows, cost.assumptions)
        return 0
    out, result = run_pretrain(command)
    if is_first_process():
        loss = result.numbers["valid/loss"]
        encoder = out / "encoder.safetensors"
        print(f"{encoder}: held-out loss {loss:.4f} after {result.position.samples} images")
        print(f"{out / 'report.html'}: curves and reconstructions; load it with encoder={encoder}")
    return 0


def _distill(command: Distill) -> int:
    from ..training.distributed import is_first_process
    from .distill_run import run_distill

    out, result = run_distill(command)
    if is_first_process():
        for encoder in result.encoders:
            print(f"{encoder}: load it with encoder={encoder}")
        loss = result.trained.numbers["valid/loss"]
        print(f"{out / 'report.html'}: held-out loss {loss:.4f} after {result.trained.position.samples} images")
    return 0


def _score(command: Score) -> int:
    from .curation.score_run import run_score

    result = run_score(command)
    reused = f", {result.reused} were there" if result.reused else ""
    lost = f", {result.unreadable} unreadable" if result.unreadable else ""
    print(f"{result.out}: scores of {result.shards} shards{reused}; {result.images} images scored{lost}")
    print(f"weigh them with: pixio-robot curate scores={result.out} images=...")
    return 0


def _curate(command: Curate) -> int:
    from ..report.tables import print_curation
    from .curation.curate_run import run_curate

    out, result = run_curate(command)
    print_curation(out, result)
    return 0


def _probe(command: Probe) -> int:
    from ..report.tables import print_probes
    from .probes.runs import run_probe

    print_probes(*run_probe(command))
    return 0


COMMANDS = {
    "pretrain": Command(Pretrain, _pretrain, {"recipe": "laptop"}),
    "distill": Command(Distill, _distill, values={"lr": 0.001, "clip": 1.0}),
    "score": Command(Score, _score),
    "curate": Command(Curate, _curate),
    "probe": Command(Probe, _probe),
}
