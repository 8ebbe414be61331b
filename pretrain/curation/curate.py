"""From statistics of images to a file of weights, example sheets and a report."""

import hashlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...progress import stage
from ...report.page import write_report
from ...run_folder import write_json
from .official import official_statistics
from .sheets import KINDS, Examples, draw_histograms
from .sidecar import read_head, read_sidecar
from .statistics import ShardStatistics, named_shards
from .totals import LOW_CONTRAST, Totals
from .weight_file import writing
from .weights import VERDICTS, WeightRule, weigh

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StatisticsSource:
    """Statistics to curate, shard by shard."""

    names: list[str]  # of shards
    read: Callable[[str], ShardStatistics]
    shards: dict[str, Path]  # available shards by name, for example sheets
    unscored: int  # shards without statistics

    def __iter__(self) -> Iterator[ShardStatistics]:
        return map(self.read, self.names)


def sum_statistics(statistics: StatisticsSource, rule: WeightRule) -> tuple[Totals, str]:
    """Return sums over all images, and a hash of their statistics.

    Raises:
        DataError: if no image passes the filters.
    """
    totals, content = Totals(), hashlib.sha256()
    with stage("read statistics", len(statistics.names)) as bar:
        for each in statistics:
            totals.add(each, weigh(each, rule))
            for column in (each.hash, each.offset, each.loss, each.entropy):
                content.update(column.tobytes())
            bar.advance(1)
    if totals.expected(rule.cap) < 1:
        raise DataError(_nothing_left(totals, rule))
    return totals, content.hexdigest()


def write_curation(
    out: Path, statistics: StatisticsSource, totals: Totals, rule: WeightRule, *, examples: int, task: str
) -> dict[str, Any]:
    """Write weights, example sheets, result and report; return the content of ``result.json``.

    Args:
        out: the run folder.
        totals: of `sum_statistics`, with the same rule.
        examples: images on each example sheet.
        task: where the statistics come from, for display.
    """
    sheets = Examples(examples, totals.quantile(0.1), totals.quantile(0.9))
    with stage("write weights", len(statistics.names)) as bar, writing(out / "weights.parquet") as file:
        for each in statistics:
            weighed = weigh(each, rule)
            file.add(each, weighed.weight * totals.sources[each.source].factor(rule.cap))
            sheets.add(each, weighed)
            bar.advance(1)
    draw_histograms(out / "images" / "histograms.png", totals, rule.entropy)
    files = {
        KINDS[kind]: path.relative_to(out) for kind, path in sheets.draw(statistics.shards, out / "images").items()
    }
    result = {"title": "curation", "task": task, **_result(rule, totals, statistics, files)}
    for note in result["notes"]:
        log.warning("%s", note)
    write_json(out / "result.json", result)
    write_report(out)
    return result


def sidecar_statistics(folder: Path, images: Any = None) -> StatisticsSource:
    """Return the statistics that `pixio-robot score` wrote.

    Args:
        folder: of the sidecars.
        images: the scored shards, as for `named_shards`; None is all shards that have scores.

    Raises:
        DataError: if there are none, or they are of several models.
    """
    files = sorted(folder.rglob("[!.]*.parquet")) if folder.is_dir() else []
    if not files:
        raise DataError(f"no scores in {folder}; write them with: pixio-robot score images=... model=... out={folder}")
    heads = {file: read_head(file) for file in files}
    scorings = {head.scoring for head in heads.values()}
    if len(scorings) > 1:
        models = ", ".join(sorted({f"{each.model} ({each.masks} masks)" for each in scorings}))
        raise DataError(f"{folder} holds scores of different models or settings: {models}; curate one at a time")
    by_name = {head.shard: file for file, head in heads.items()}
    shards = named_shards(images) if images is not None else {}
    names = [name for name in by_name if name in shards] if shards else list(by_name)
    if not names:
        raise DataError(f"none of the {len(shards)} shards of images= has scores in {folder}: {next(iter(shards))} ...")
    return StatisticsSource(names, lambda name: read_sidecar(by_name[name]), shards, len(set(shards) - set(by_name)))


def json_statistics(root: Path, images: Any) -> StatisticsSource:
    """Return statistics in Pixio's own JSON format.

    Args:
        root: of the JSON files.
        images: the shards they are of, as for `named_shards`.

    Raises:
        DataError: if there are none.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}; official= is the root of <folder of a tar>/<stem of the tar>.json")
    shards = named_shards(images)
    without = [name for name in shards if not (root / f"{name}.json").is_file()]
    if len(without) == len(shards):
        raise DataError(
            f"{root} has no records for any of {len(shards)} shards; expected e.g. {root / without[0]}.json"
        )
    return StatisticsSource(list(shards), lambda name: official_statistics(shards[name], root), shards, len(without))


def _nothing_left(totals: Totals, rule: WeightRule) -> str:
    counts = ", ".join(
        f"{count} {name}" for name, count in zip(VERDICTS, totals.verdicts.tolist(), strict=True) if count
    )
    return (
        f"no image would be drawn of {totals.images} ({counts}); the filters are entropy={rule.entropy} and "
        f"least_side={rule.least_side}: choose others, or check the scores"
    )


def _result(rule: WeightRule, totals: Totals, statistics: StatisticsSource, sheets: dict[str, Path]) -> dict[str, Any]:
    expected, effective = totals.expected(rule.cap), totals.effective(rule.cap)
    verdicts = dict(zip(VERDICTS, totals.verdicts.tolist(), strict=True))
    entropy = totals.entropy(rule.cap)
    numbers = {
        "images": totals.images,
        "unreadable or without a finite loss": verdicts["unreadable"],
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
        "entropy of equal weights [bits]": math.log2(totals.drawable),
        "contrast of the weights": totals.contrast,
        "shards": totals.shards,
        "shards cut short": totals.cut,
        "shards without scores": statistics.unscored,
    }
    notes = []
    if totals.contrast < LOW_CONTRAST:
        notes.append(
            f"The weights are almost equal: contrast {totals.contrast:.3f}, below {LOW_CONTRAST}. Drawing by them is "
            "almost uniform; the losses of a model trained longer differ more."
        )
    if statistics.unscored:
        notes.append(f"{statistics.unscored} shards have no statistics; their images are never drawn.")
    if totals.cut:
        notes.append(f"{totals.cut} shards are truncated or damaged; the images after that place are unknown.")
    if verdicts["no record"] or verdicts["unreadable"] or verdicts["duplicate"]:
        lost = {name: verdicts[name] for name in ("unreadable", "no record", "duplicate") if verdicts[name]}
        notes.append(f"Never drawn: {', '.join(f'{count} {name}' for name, count in lost.items())}.")
    rows = []
    for name, each in sorted(totals.sources.items()):
        drawn = each.factor(rule.cap) * each.weight
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
    loss = "loss" if rule.temperature == 1 else f"loss^(1/{rule.temperature:g})"
    images = {"Distributions": Path("images/histograms.png"), **sheets}
    return {
        "facts": {
            "rule": f"min(1, {loss}), entropy above {rule.entropy} bits, "
            f"sides of at least {rule.least_side} px"
            + (f", at most {rule.cap:g} images an epoch from a source" if rule.cap else ""),
        },
        "notes": notes,
        "numbers": numbers,
        "tables": {"Sources": rows},
        "images_title": "Examples",
        "images": [{"file": str(file), "caption": caption} for caption, file in images.items()],
    }
