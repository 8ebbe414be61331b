"""``result.json`` of a probe run, from which its report is made."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...report.curves import number
from .classification import PROBES
from .dense_data import thinned
from .dense_runs import DENSE_PROBES, DenseSplit, slug, unit
from .dense_training import HeadTraining
from .labelled import Labelled, ProbeImages
from .outcomes import comparisons
from .rows import Row, headlines, lower_is_better


def probe_result(
    sources: ProbeImages,
    settings: HeadTraining,
    labelled: Labelled | None,
    dense: Sequence[DenseSplit],
    rows: list[Row],
    out: Path,
) -> dict[str, Any]:
    """Return the content of ``result.json``.

    Args:
        sources: where the images come from.
        settings: of dense heads.
        labelled, dense: the images, where probes need them.
        rows: all measurements, in the order of the tables.
        out: the run folder.
    """
    heads, paired = headlines(rows), comparisons(out, rows)
    files = [(row, f"{row.probe}-{slug(row.encoder)}") for row in heads if row.probe in DENSE_PROBES]
    estimators = [f"heads/{name}.safetensors" for row, name in files if DENSE_PROBES[row.probe][0] == "depth"]
    facts = _labelled_facts(labelled, from_same_source=sources.test is None) if labelled else {}
    for split in dense:
        facts |= _dense_facts(split, settings, from_same_source=sources.test is None)
    if estimators:
        facts["depth heads for pixio_robot.load_depth"] = ", ".join(estimators)
    return {
        "title": "probes of frozen features",
        "task": str(sources.images) + (f", test {sources.test}" if sources.test is not None else ""),
        "facts": facts,
        "notes": [*_against_references(heads), *_lost(labelled, rows), *_many(paired)],
        "tables": {"Headlines": _table(heads), "Paired comparisons": paired, "All": _table(rows)},
        "images_title": "Side by side",
        "images": [
            {
                "file": "figure.png",
                "caption": "Bars are 95 % intervals; grey and dashed are references without an encoder",
            },
            *(
                {"file": f"images/{name}.png", "caption": f"{row.probe}, {row.encoder}, on some test images"}
                for row, name in files
            ),
        ],
    }


def _labelled_facts(labelled: Labelled, from_same_source: bool) -> dict[str, str]:
    counts, classes = np.bincount(labelled.test.labels), len(np.unique(labelled.training.labels))
    return {
        "trained on": f"{len(labelled.training.indices)} images of {classes} classes",
        "tested on": f"{len(labelled.test.indices)} images" + (", held out" if from_same_source else ""),
        "accuracy of the most frequent class": f"{counts.max() / counts.sum():.3f}",
    }


def _dense_facts(split: DenseSplit, settings: HeadTraining, from_same_source: bool) -> dict[str, str]:
    training, test = (
        thinned(images, most)
        for images, most in ((split.training, settings.train_images), (split.test, settings.test_images))
    )
    resampled = unit(test)
    units = len(test) if resampled == "images" or test.groups is None else len(test.groups) - 1
    return {
        f"{split.kind} trained on": f"{len(training)} of {len(split.training)} images",
        f"{split.kind} tested on": f"{len(test)} of {len(split.test)} images"
        + (", held out" if from_same_source else "")
        + f"; intervals resample {units} {resampled} and are not paired between encoders",
    }


def _against_references(heads: Sequence[Row]) -> list[str]:
    by_name = {(row.encoder, row.probe): row for row in heads}
    notes = []
    for row in heads:
        reference = by_name.get(_reference_of(row))
        if row.weights == "none" or reference is None:
            continue
        gain = row.value - reference.value
        if (-gain if lower_is_better(row.metric) else gain) <= 0:
            what = "above raw pixels" if reference.encoder == "pixels" else f"better than the {reference.encoder}"
            notes.append(f"{row.encoder} is not {what} in {row.probe}.")
    return notes


def _reference_of(row: Row) -> tuple[str, str]:
    """Return encoder and probe of the reference row."""
    if row.probe in PROBES:
        return "pixels", row.probe
    kind = row.probe.split("_")[0]
    return ("median" if kind == "depth" else "most frequent class") + " of each pixel", f"{kind}_baseline"


def _lost(labelled: Labelled | None, rows: Sequence[Row]) -> list[str]:
    if labelled is None:
        return []
    lost = len(labelled.test.indices) - min(row.count for row in rows if row.probe in PROBES)
    return [f"{lost} test images are unreadable and left out, as are unreadable training images."] if lost else []


def _many(paired: Sequence[dict[str, Any]]) -> list[str]:
    few = len(paired) < 2
    return [] if few else [f"{len(paired)} comparisons; their p values are not corrected for their number."]


def _table(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [
        {
            "encoder": row.encoder,
            "weights": row.weights,
            "probe": row.probe,
            "block": str(row.layer) if row.layer >= 0 else "-",
            "token": row.token,
            "metric": row.metric,
            "value": number(row.value),
            "95% interval": f"{number(row.low)} to {number(row.high)}",
            "images": row.count,
        }
        for row in rows
    ]
