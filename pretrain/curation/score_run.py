"""Scoring of all tar shards of a set: distribution over workers, and one sidecar for each shard."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...checkpoint import load_checkpoint
from ...errors import BadInput, DataError, PixioError
from ...hardware import choose_device, choose_precision
from ...jobs.launch import Launch
from ...jobs.workers import choose_engine, rank_of, run_shards
from ...progress import stage
from ...run_folder import digest
from ..mae import MaskedAutoencoder
from ..masking import mask_shape
from ..networks import load_autoencoder
from .score import Scoring, model_hash, score_shard
from .sidecar import arrow, read_head, sidecar_path, write_sidecar
from .statistics import UNREADABLE, named_shards

log = logging.getLogger(__name__)


class ShardSpec(NamedTuple):
    """A shard to score."""

    shard: Path
    sidecar: Path  # file of its scores


class ShardResult(NamedTuple):
    """Outcome of scoring a shard."""

    shard: str
    images: int = 0
    unreadable: int = 0
    cut: bool = False
    error: str = ""  # why there is no sidecar


class Scorer(NamedTuple):
    """Everything that a worker process needs to score shards; small, so it can be sent."""

    model: str  # a file
    scoring: Scoring
    readers: int

    def load(self, device: str) -> Callable[[ShardSpec], ShardResult]:
        """Load the autoencoder and return a function that scores a shard with it."""
        return partial(write_scores, self, load_autoencoder(self.model).to(device), torch.device(device))


def write_scores(scorer: Scorer, model: MaskedAutoencoder, device: torch.device, spec: ShardSpec) -> ShardResult:
    """Score a shard and write its sidecar; for an unreadable shard the result has the error."""
    try:
        found = score_shard(spec.shard, model, scorer.scoring, device, scorer.readers)
        write_sidecar(spec.sidecar, found, scorer.scoring, spec.shard.stat().st_size)
    except (PixioError, OSError) as error:
        return ShardResult(str(spec.shard), error=str(error))
    return ShardResult(str(spec.shard), len(found.key), found.status.count(UNREADABLE), found.cut)


@dataclass(frozen=True)
class ScoreConfig:
    """How images are scored."""

    masks: int = 2  # of an image; its loss is their mean
    mask_ratio: float | None = None  # share of patches to hide; None is the model's own
    mask_block: int | None = None  # side of the masks' blocks [patches]; None is the model's own
    batch: int = 32  # images a forward pass
    precision: str = "auto"
    device: str = "auto"
    engine: str = "auto"  # as for `choose_engine`
    workers: int | None = None  # processes or Ray actors; None is one a core or GPU
    readers: int = 1  # threads of a worker that read and decode ahead


@dataclass
class ScoreResult:
    """What one process did."""

    out: Path
    shards: int = 0  # assigned to it
    reused: int = 0  # shards that had scores
    images: int = 0  # scored now
    unreadable: int = 0
    cut: int = 0  # shards


def score_images(images: Any, model: Path, config: ScoreConfig, out: Path | None = None) -> ScoreResult:
    """Write a sidecar for every shard that has none.

    Args:
        images: tar shards, as for `named_shards`.
        model: an ``autoencoder.safetensors``, or the run folder that holds it.
        out: folder of the sidecars; None is runs/scores/<digest of what decides the scores>.

    Raises:
        DataError: if there are sidecars of another model, other settings or another shard, or shards cannot be read;
            all other shards are done by then.
    """
    arrow()
    engine = choose_engine(config.engine)
    rank, world = rank_of(engine)
    shards = named_shards(images)
    device = choose_device(config.device).type
    file = model / "autoencoder.safetensors" if model.is_dir() else model
    scoring = scoring_of(file, config, choose_precision(config.precision, choose_device(config.device)))
    result = ScoreResult(out or Path(f"runs/scores/{digest(scoring)}"))
    specs = []
    for name, shard in list(shards.items())[rank::world]:
        result.shards += 1
        sidecar = sidecar_path(result.out, name)
        if sidecar.is_file():
            _check_sidecar(sidecar, shard, scoring)
            result.reused += 1
        else:
            specs.append(ShardSpec(shard, sidecar))
    if engine == "ray":  # its workers have a different working directory
        file, specs = file.absolute(), [ShardSpec(*(path.absolute() for path in spec)) for spec in specs]
    failed: list[ShardResult] = []
    scorer, launch = Scorer(str(file), scoring, config.readers), Launch(engine, config.workers, config.readers)
    with stage("score shards", len(specs)) as bar:
        for each in run_shards(specs, scorer.load, device, launch):
            bar.advance(1)
            result.images += each.images
            result.unreadable += each.unreadable
            result.cut += each.cut
            if each.error:
                failed.append(each)
            elif each.cut:
                log.warning("%s is cut short or damaged; %d images before that are scored", each.shard, each.images)
    if failed:
        raise DataError(
            f"{len(failed)} of {len(specs)} shards could not be scored, e.g. {failed[0].shard}: {failed[0].error}. The "
            "others are done; the same command tries these again"
        )
    return result


def scoring_of(file: Path, config: ScoreConfig, precision: str) -> Scoring:
    """Return what decides the scores; masks that are not set are those the autoencoder was trained with.

    Raises:
        CheckpointError: if `file` is missing or no autoencoder.
        BadInput: if the masks do not fit it.
    """
    model = load_autoencoder(file)
    trained = load_checkpoint(file, kind="autoencoder").settings
    ratio = config.mask_ratio if config.mask_ratio is not None else trained.get("mask_ratio")
    block = config.mask_block if config.mask_block is not None else trained.get("mask_block")
    if ratio is None or block is None:
        raise BadInput(f"{file} has no record of its masks; give them, e.g. mask_ratio=0.75 mask_block=4")
    side = model.encoder.grid
    mask_shape((side, side), ratio, block)
    if not model.norm_pixels:
        log.warning("%s predicts raw pixels, so its losses depend on contrast and may lie far outside 0 to 1", file)
    return Scoring(
        model_hash(model), side * model.encoder.patch, float(ratio), block, config.masks, config.batch, precision
    )


def _check_sidecar(sidecar: Path, shard: Path, scoring: Scoring) -> None:
    head = read_head(sidecar)
    changed = [
        f"{name} {theirs!r} instead of {ours!r}"
        for name, theirs, ours in zip(Scoring._fields, head.scoring, scoring, strict=True)
        if theirs != ours
    ]
    if head.bytes != shard.stat().st_size:
        changed.append(f"a shard of {head.bytes} bytes instead of {shard.stat().st_size}")
    if changed:
        raise DataError(f"{sidecar} holds scores with {', '.join(changed)}; choose another out= or delete it")
