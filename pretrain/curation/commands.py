"""The commands score and curate: their settings and what they do."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...command import Command
from ...errors import BadInput
from ...settings import MISSING, Hardware, key

if TYPE_CHECKING:
    from pathlib import Path

    from .score_run import ScoreResult


@dataclass
class Score(Hardware):
    """Score images by masked reconstruction: one Parquet file a tar shard."""

    images: Any = key(MISSING, "tar shards: folder, file, pattern, or a list of them", free=True)
    model: str = key(MISSING, "autoencoder.safetensors, or the run folder of pretrain that holds it")
    masks: int = key(2, "masks of an image; its loss is their mean", least=1)
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
    temperature: float = key(1.0, "weight = min(1, loss^(1/temperature)); above 1 weights get more equal, below 1 less")
    cap: float | None = key(None, "most images expected an epoch from one folder of shards; null means no cap")
    examples: int = key(24, "images on each example sheet", least=0)
    out: str | None = key(None, "run folder; null means runs/curate/<digest of settings and scores>", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


def run_score(settings: Score) -> int:
    """Score tar shards."""
    result = compute_scores(settings)
    reused = f", {result.reused} reused" if result.reused else ""
    lost = f", {result.unreadable} unreadable" if result.unreadable else ""
    print(f"{result.out}: scores of {result.shards} shards{reused}; {result.images} images scored{lost}")
    print(f"next: pixio-robot curate scores={result.out} images=...")
    return 0


def compute_scores(settings: Score) -> "ScoreResult":
    """Write the scores of every shard that has none; return what this process did."""
    from pathlib import Path

    from .score_run import ScoreConfig, score_images

    names = ("masks", "mask_ratio", "mask_block", "batch", "precision", "device", "engine", "workers", "readers")
    config = ScoreConfig(**{name: getattr(settings, name) for name in names})
    out = None if settings.out is None else Path(settings.out)
    return score_images(settings.images, Path(settings.model), config, out)


def run_curate(settings: Curate) -> int:
    """Turn scores into weights."""
    from ...report.tables import print_curation

    print_curation(*compute_weights(settings))
    return 0


def compute_weights(settings: Curate) -> "tuple[Path, dict[str, Any]]":
    """Turn scores into weights; return the run folder and the content of its ``result.json``."""
    from pathlib import Path

    from ...run_folder import open_run, settings_digest
    from .curate import json_statistics, sidecar_statistics, sum_statistics, write_curation
    from .sidecar import arrow
    from .weights import WeightRule

    arrow()
    if (settings.scores is None) == (settings.official is None):
        raise BadInput("give either scores=FOLDER, written by `pixio-robot score`, or official=FOLDER of JSON files")
    if settings.official is not None and settings.images is None:
        raise BadInput("official= names images by their members; give the shards too: images=...")
    rule = WeightRule(settings.entropy, settings.least_side, settings.temperature, settings.cap)
    if settings.scores is not None:
        statistics = sidecar_statistics(Path(settings.scores), settings.images)
    else:
        statistics = json_statistics(Path(str(settings.official)), settings.images)
    totals, content = sum_statistics(statistics, rule)
    out = Path(settings.out or f"runs/curate/{settings_digest(settings, content)}")
    open_run(out, settings, content)
    task = str(settings.scores or settings.official)
    return out, write_curation(out, statistics, totals, rule, examples=settings.examples, task=task)


COMMANDS = {"score": Command(Score, run_score), "curate": Command(Curate, run_curate)}
