"""Scoring of all tar shards of a set: which are left to do, by which workers, and where the scores go."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoint import load_checkpoint
from ...errors import BadInput, DataError
from ...hardware import choose_device, choose_precision
from ...progress import stage
from ...run_folder import digest
from ..masking import mask_shape
from ..networks import load_autoencoder
from .engines import Job, Outcome, Scorer, choose_engine, rank_of, run_jobs
from .score import Scoring, model_hash
from .sidecar import arrow, read_head, sidecar_path
from .statistics import named_shards

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreConfig:
    """How images are scored."""

    masks: int = 2  # of an image; its loss is their mean
    mask_ratio: float | None = None  # share of patches to hide; None is the model's own
    mask_block: int | None = None  # side of the masks' blocks [patches]; None is the model's own
    batch: int = 32  # images a forward pass
    precision: str = "auto"
    device: str = "auto"
    engine: str = "auto"  # who runs the workers
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
    jobs = []
    for name, shard in list(shards.items())[rank::world]:
        result.shards += 1
        sidecar = sidecar_path(result.out, name)
        if sidecar.is_file():
            _check_sidecar(sidecar, shard, scoring)
            result.reused += 1
        else:
            jobs.append(Job(shard, sidecar))
    failed: list[Outcome] = []
    with stage("score shards", len(jobs)) as bar:
        for outcome in run_jobs(jobs, Scorer(str(file), scoring, device, config.readers), engine, config.workers):
            bar.advance(1)
            result.images += outcome.images
            result.unreadable += outcome.unreadable
            result.cut += outcome.cut
            if outcome.error:
                failed.append(outcome)
            elif outcome.cut:
                log.warning(
                    "%s is cut short or damaged; %d images before that are scored", outcome.shard, outcome.images
                )
    if failed:
        raise DataError(
            f"{len(failed)} of {len(jobs)} shards could not be scored, e.g. {failed[0].shard}: {failed[0].error}. The "
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
