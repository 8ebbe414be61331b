"""What ``pixio-robot curate`` does, from its settings to its files."""

import hashlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BadInput, DataError
from ...progress import stage
from ...report.page import write_report
from ...run_folder import open_run, settings_digest, write_json
from ..commands import Curate
from .official import official_statistics
from .sheets import KINDS, Examples, draw_histograms
from .sidecar import arrow, read_head, read_sidecar
from .statistics import ShardStatistics, named_shards
from .totals import LOW_CONTRAST, Totals
from .weight_file import writing
from .weights import VERDICTS, Policy, weigh

log = logging.getLogger(__name__)


@dataclass
class _Statistics:
    """The statistics to curate: shard names, and how to read those of one."""

    names: list[str]
    read: Callable[[str], ShardStatistics]
    shards: dict[str, Path]  # at hand, for example sheets
    unscored: int  # shards without statistics

    def __iter__(self) -> Iterator[ShardStatistics]:
        return map(self.read, self.names)


def run_curate(command: Curate) -> tuple[Path, dict[str, Any]]:
    """Turn statistics into weights; return the run folder and what ``result.json`` holds.

    Raises:
        DataError: if there are no statistics, they are of several models, or no image passes the filters.
    """
    arrow()
    _check(command)
    policy = Policy(command.entropy, command.least_side, command.temperature)
    statistics = _sidecars(command) if command.scores else _official(command)
    totals, content = Totals(), hashlib.sha256()
    with stage("read statistics", len(statistics.names)) as bar:
        for each in statistics:
            totals.add(each, weigh(each, policy))
            for column in (each.hash, each.offset, each.loss, each.entropy):
                content.update(column.tobytes())
            bar.advance(1)
    if totals.expected(command.cap) < 1:
        raise DataError(_nothing_left(totals, command))
    out = Path(command.out or f"runs/curate/{settings_digest(command, content.hexdigest())}")
    open_run(out, command, content.hexdigest())
    examples = Examples(command.examples, totals.quantile(0.1), totals.quantile(0.9))
    with stage("write weights", len(statistics.names)) as bar, writing(out / "weights.parquet") as file:
        for each in statistics:
            weighed = weigh(each, policy)
            file.add(each, weighed.weight * totals.sources[each.source].factor(command.cap))
            examples.add(each, weighed)
            bar.advance(1)
    draw_histograms(out / "images" / "histograms.png", totals, command.entropy)
    sheets = examples.draw(statistics.shards, out / "images")
    result = _result(command, totals, statistics, {KINDS[kind]: path.relative_to(out) for kind, path in sheets.items()})
    for note in result["notes"]:
        log.warning("%s", note)
    write_json(out / "result.json", result)
    write_report(out)
    return out, result


def _check(command: Curate) -> None:
    if (command.scores is None) == (command.official is None):
        raise BadInput("give either scores=FOLDER, written by `pixio-robot score`, or official=FOLDER of JSON files")
    if command.official is not None and command.images is None:
        raise BadInput("official= names images by their members; give the shards too: images=...")
    if not 0 < command.temperature < math.inf:
        raise BadInput(f"temperature={command.temperature} must be positive and finite; 1 is Pixio's rule")
    if command.cap is not None and not 0 < command.cap < math.inf:
        raise BadInput(f"cap={command.cap} must be a positive number of images an epoch, or null")


def _sidecars(command: Curate) -> _Statistics:
    folder = Path(str(command.scores))
    files = sorted(folder.rglob("[!.]*.parquet")) if folder.is_dir() else []
    if not files:
        raise DataError(f"no scores in {folder}; write them with: pixio-robot score images=... model=... out={folder}")
    heads = {file: read_head(file) for file in files}
    scorings = {head.scoring for head in heads.values()}
    if len(scorings) > 1:
        models = ", ".join(sorted({f"{each.model} ({each.masks} masks)" for each in scorings}))
        raise DataError(f"{folder} holds scores of different models or settings: {models}; curate one at a time")
    by_name = {head.shard: file for file, head in heads.items()}
    shards = named_shards(command.images) if command.images is not None else {}
    names = [name for name in by_name if name in shards] if shards else list(by_name)
    if not names:
        raise DataError(f"none of the {len(shards)} shards of images= has scores in {folder}: {next(iter(shards))} ...")
    return _Statistics(names, lambda name: read_sidecar(by_name[name]), shards, len(set(shards) - set(by_name)))


def _official(command: Curate) -> _Statistics:
    root = Path(str(command.official))
    if not root.is_dir():
        raise DataError(f"no folder {root}; official= is the root of <folder of a tar>/<stem of the tar>.json")
    shards = named_shards(command.images)
    without = [name for name in shards if not (root / f"{name}.json").is_file()]
    if len(without) == len(shards):
        raise DataError(
            f"{root} has no records for any of {len(shards)} shards; wanted is e.g. {root / without[0]}.json"
        )
    return _Statistics(list(shards), lambda name: official_statistics(shards[name], root), shards, len(without))


def _nothing_left(totals: Totals, command: Curate) -> str:
    counts = ", ".join(
        f"{count} {name}" for name, count in zip(VERDICTS, totals.verdicts.tolist(), strict=True) if count
    )
    return (
        f"nothing would be drawn of {totals.images} images ({counts}); the filters are entropy={command.entropy} and "
        f"least_side={command.least_side}: choose others, or look at the scores"
    )


def _result(command: Curate, totals: Totals, statistics: _Statistics, sheets: dict[str, Path]) -> dict[str, Any]:
    expected, effective = totals.expected(command.cap), totals.effective(command.cap)
    verdicts = dict(zip(VERDICTS, totals.verdicts.tolist(), strict=True))
    entropy = totals.entropy(command.cap)
    numbers = {
        "images": totals.images,
        "unreadable, or without a finite loss": verdicts["unreadable"],
        "without a record": verdicts["no record"],
        "same name twice in a shard": verdicts["duplicate"],
        "left out for few colours": verdicts["few colours"],
        "left out for a short side": verdicts["too small"],
        "drawable": totals.drawable,
        "expected images an epoch": expected,
        "kept share": expected / totals.images,
        "effective sample size": effective,
        "effective share of the drawable": effective / totals.drawable,
        "entropy of the weights [bits]": entropy,
        "the same were all equal [bits]": math.log2(totals.drawable),
        "contrast of the weights": totals.contrast,
        "shards": totals.shards,
        "shards cut short": totals.cut,
        "shards without scores": statistics.unscored,
    }
    notes = []
    if totals.contrast < LOW_CONTRAST:
        notes.append(
            f"The weights hardly differ: contrast {totals.contrast:.3f}, below {LOW_CONTRAST}. Drawing by them is "
            "nearly drawing at random; a model trained longer tells images apart better."
        )
    if statistics.unscored:
        notes.append(f"{statistics.unscored} shards have no statistics; their images are never drawn.")
    if totals.cut:
        notes.append(f"{totals.cut} shards are cut short or damaged; their images after the cut are unknown.")
    if verdicts["no record"] or verdicts["unreadable"] or verdicts["duplicate"]:
        lost = {name: verdicts[name] for name in ("unreadable", "no record", "duplicate") if verdicts[name]}
        notes.append(f"Never drawn: {', '.join(f'{count} {name}' for name, count in lost.items())}.")
    rows = []
    for name, each in sorted(totals.sources.items()):
        drawn = each.factor(command.cap) * each.weight
        rows.append(
            {
                "source": name,
                "images": each.images,
                "mean loss": each.loss / max(each.scored, 1),
                "entropy [bits]": each.entropy / max(each.scored, 1),
                "drawable": each.drawable,
                "expected an epoch": drawn,
                "kept share": drawn / max(each.images, 1),
                "share before": each.images / totals.images,
                "share after": drawn / expected,
            }
        )
    loss = "loss" if command.temperature == 1 else f"loss^(1/{command.temperature:g})"
    images = {"Distributions": Path("images/histograms.png"), **sheets}
    return {
        "title": "curation",
        "task": str(command.scores or command.official),
        "facts": {
            "rule": f"min(1, {loss}), entropy above {command.entropy} bits, "
            f"sides of at least {command.least_side} px"
            + (f", at most {command.cap:g} images an epoch from a source" if command.cap else ""),
        },
        "notes": notes,
        "numbers": numbers,
        "tables": {"Sources": rows},
        "images_title": "Examples",
        "images": [{"file": str(file), "caption": caption} for caption, file in images.items()],
    }
