"""What ``pixio-robot probe`` does, from its settings to its files. Reads downwards; the work is in what it calls."""

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ...backbones import Backbone, load_encoder
from ...curves import number
from ...encoder import PixioEncoder
from ...errors import BadInput, UnknownName, closest
from ...files import replacing
from ...hardware import choose_device, choose_precision
from ...metrics import mcnemar
from ...progress import Progress
from ...report import write_report
from ...run_folder import digest, open_run, settings_digest, write_json
from ...schemas import Probe
from .classification import PROBES, Subject
from .features import Features, encode, pixel_features
from .figure import draw_probes
from .labelled import Labelled, open_labelled
from .rows import Row, append_rows, headlines, read_rows

LAYERS = ("last", "all")


def run_probe(command: Probe, progress: Progress) -> tuple[Path, dict[str, Any]]:
    """Probe encoders, or go on with it; return the run folder and what ``result.json`` holds.

    Raises:
        BadInput, UnknownName: for impossible settings.
        DataError: if the images have no labels, or test classes that training lacks.
    """
    names, probes = _encoders(command), _probes(command)
    device = choose_device(command.device)
    precision = choose_precision(command.precision, device)
    labelled = open_labelled(command)
    backbones = [load_encoder(name) for name in names]
    inputs = " ".join([labelled.fingerprint, *(each.fingerprint() for each in backbones)])
    out = Path(command.out or f"runs/probe/{settings_digest(command, inputs)}")
    open_run(out, command, inputs)

    for backbone in [None, *backbones]:  # None stands for raw pixels, the reference
        subject = _subject(backbone)
        missing = [probe for probe in probes if not _finished(out, subject.encoder, probe)]
        if not missing:
            continue
        training, test = (
            pixel_features(part, progress)
            if backbone is None
            else encode(
                backbone, part, layers=command.layers == "all", device=device, precision=precision, progress=progress
            )
            for part in (labelled.training, labelled.test)
        )
        if backbone is not None:
            backbone.to("cpu")
        training, test = (Features(*(each.to(device) for each in part)) for part in (training, test))
        with progress.stage(f"probe {subject.encoder}", len(missing)) as bar:
            for probe in missing:
                measured = PROBES[probe](subject, training, test, command.seed)
                _keep_outcomes(out, subject.encoder, probe, test.kept.cpu().numpy(), measured.right.cpu().numpy())
                append_rows(out / "probe.jsonl", measured.rows)
                bar.advance(1)

    wanted = {(name, probe): order for order, (name, probe) in enumerate((n, p) for p in probes for n in _all(names))}
    rows = [row for row in read_rows(out / "probe.jsonl") if (row.encoder, row.probe) in wanted]
    rows.sort(key=lambda row: wanted[row.encoder, row.probe])
    draw_probes(out / "figure.png", rows)
    result = _result(command, labelled, rows, out)
    write_json(out / "result.json", result)
    write_report(out)
    return out, result


def _encoders(command: Probe) -> list[str]:
    names = [command.encoder] if isinstance(command.encoder, str) else command.encoder
    if not isinstance(names, list) or not names or not all(isinstance(each, str) and each for each in names):
        raise BadInput(f"encoder={command.encoder} must name an encoder, or several: encoder=[random:ti,runs/a/b]")
    return list(dict.fromkeys(names))


def _probes(command: Probe) -> list[str]:
    for name in command.probes:
        if name not in ("auto", *PROBES):
            known = ("auto", *PROBES)
            raise UnknownName(f"no probe {name!r}; there are: {', '.join(known)}{closest(name, known)}")
    if not command.probes:
        raise BadInput(f"probes=[] asks for none; there are: auto, {', '.join(PROBES)}")
    if command.layers not in LAYERS:
        raise UnknownName(f"layers={command.layers!r} is not one of: {', '.join(LAYERS)}")
    return list(PROBES) if "auto" in command.probes else list(dict.fromkeys(command.probes))


def _all(names: Iterable[str]) -> list[str]:
    return [*names, "pixels"]


def _subject(backbone: Backbone | None) -> Subject:
    if backbone is None:
        return Subject("pixels", "none", -1, "thumbnail")
    network = backbone.network
    last = len(network.blocks) - 1 if isinstance(network, PixioEncoder) else -1
    return Subject(backbone.name, backbone.weights, last)


def _finished(out: Path, encoder: str, probe: str) -> bool:
    return any((row.encoder, row.probe) == (encoder, probe) for row in read_rows(out / "probe.jsonl"))


def _outcomes_file(out: Path, encoder: str, probe: str) -> Path:
    return out / "outcomes" / f"{digest(encoder, probe)}.npy"


def _keep_outcomes(out: Path, encoder: str, probe: str, kept: np.ndarray, right: np.ndarray) -> None:
    """Write what a headline makes of each test image, int8: 1 right, 0 wrong, -1 not readable."""
    outcomes = np.full(len(kept), -1, np.int8)
    outcomes[kept] = right
    with replacing(_outcomes_file(out, encoder, probe)) as temporary, temporary.open("wb") as file:
        np.save(file, outcomes)


def _comparisons(out: Path, rows: list[Row]) -> list[dict[str, Any]]:
    """Return McNemar's test of every two encoders on the headline of each probe that classifies."""
    tests = []
    for first, second in combinations(headlines(rows), 2):
        if first.probe != second.probe or first.metric != second.metric or first.probe not in PROBES:
            continue
        ones, others = (np.load(_outcomes_file(out, each.encoder, each.probe)) for each in (first, second))
        both = (ones >= 0) & (others >= 0)
        test = mcnemar((ones[both] == 1).tolist(), (others[both] == 1).tolist())
        tests.append(
            {
                "probe": first.probe,
                "first": first.encoder,
                "second": second.encoder,
                "only first right": test.only_first,
                "only second right": test.only_second,
                "p, McNemar": f"{test.p:.2g}",
            }
        )
    return tests


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


def _result(command: Probe, labelled: Labelled, rows: list[Row], out: Path) -> dict[str, Any]:
    counts = np.bincount(labelled.test.labels)
    comparisons = _comparisons(out, rows)
    notes = []
    reference = {row.probe: row for row in headlines(rows) if row.encoder == "pixels"}
    for row in headlines(rows):
        if row.encoder != "pixels" and row.probe in reference and row.value <= reference[row.probe].value:
            notes.append(f"{row.encoder} is not above raw pixels in {row.probe}.")
    if lost := len(labelled.test.indices) - min(row.count for row in rows):
        notes.append(f"{lost} test images cannot be read and are left out; so are training images that cannot.")
    if len(comparisons) > 1:
        notes.append(f"{len(comparisons)} comparisons; their p values are not corrected for their number.")
    return {
        "title": "probes of frozen features",
        "task": str(command.images) + (f", test {command.test}" if command.test is not None else ""),
        "facts": {
            "learned from": f"{len(labelled.training.indices)} images of {len(np.unique(labelled.training.labels))} "
            "classes",
            "tested on": f"{len(labelled.test.indices)} images" + (", held out" if command.test is None else ""),
            "always guessing the commonest class": f"{counts.max() / counts.sum():.3f}",
        },
        "notes": notes,
        "tables": {"Headlines": _table(headlines(rows)), "Paired comparisons": comparisons, "All": _table(rows)},
        "pictures_title": "Side by side",
        "pictures": [{"file": "figure.png", "caption": "Bars are 95 % intervals; the dashed line is raw pixels"}],
    }
