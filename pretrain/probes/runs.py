"""What ``pixio-robot probe`` does, from its settings to its files. Reads downwards; the work is in what it calls."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...depth.heads import WIDTHS
from ...encoders.load import Backbone, load_encoder
from ...errors import BadInput, UnknownName, closest
from ...hardware import choose_device, choose_precision
from ...progress import stage
from ...report.page import write_report
from ...run_folder import open_run, settings_digest, write_json
from ..commands import Probe
from .classification import PROBES, Subject
from .dense_runs import PROBES as DENSE_PROBES
from .dense_runs import DenseSplit, baseline_rows, dense_rows, open_dense_split, slug
from .dense_training import blocks_of
from .features import Features, encode, pixel_features
from .figure import draw_probes
from .labelled import Labelled, open_labelled
from .outcomes import keep_outcomes
from .results import probe_result
from .rows import Row, append_rows, read_rows

LAYERS = ("last", "all")


class Run(NamedTuple):
    """What every probe of a run goes by."""

    command: Probe
    out: Path
    device: torch.device
    precision: str  # of the encoders


def run_probe(command: Probe) -> tuple[Path, dict[str, Any]]:
    """Probe encoders, or go on with it; return the run folder and what ``result.json`` holds.

    Raises:
        BadInput, UnknownName: for impossible settings.
        DataError: if the images lack the labels or the depth asked for, or test classes are new.
    """
    names, probes = _encoders(command), _probes(command)
    device = choose_device(command.device)
    precision = choose_precision(command.precision, device)
    kinds = dict.fromkeys(DENSE_PROBES[probe][0] for probe in probes if probe in DENSE_PROBES)
    labelled = open_labelled(command) if any(probe in PROBES for probe in probes) else None
    dense = [open_dense_split(command, kind) for kind in kinds]
    backbones = [load_encoder(name) for name in names]
    for backbone, probe in product(backbones, probes):
        if probe in DENSE_PROBES:
            blocks_of(backbone, DENSE_PROBES[probe][1])  # refuses before anything is trained
    images = [each.fingerprint for each in (labelled, *dense) if each is not None]
    inputs = " ".join([*images, *(each.fingerprint() for each in backbones)])
    out = Path(command.out or f"runs/probe/{settings_digest(command, inputs)}")
    open_run(out, command, inputs)
    run = Run(command, out, device, precision)

    if labelled is not None:
        asked = [probe for probe in probes if probe in PROBES]
        for subject in [None, *backbones]:  # None stands for raw pixels, the reference
            _probe_labelled(run, subject, asked, labelled)
    for split in dense:
        asked = [probe for probe in probes if DENSE_PROBES.get(probe, ("",))[0] == split.kind]
        _probe_dense(run, backbones, asked, split)

    rows = _ordered(read_rows(out / "probe.jsonl"), names, probes)
    draw_probes(out / "figure.png", rows)
    result = probe_result(command, labelled, dense, rows, out)
    write_json(out / "result.json", result)
    write_report(out)
    return out, result


def _probe_labelled(run: Run, backbone: Backbone | None, probes: Sequence[str], labelled: Labelled) -> None:
    command, out, device, precision = run
    subject = _subject(backbone)
    missing = [probe for probe in probes if not _finished(out, subject.encoder, probe)]
    if not missing:
        return
    layers = command.layers == "all"
    training, test = (
        pixel_features(part)
        if backbone is None
        else encode(backbone, part, layers=layers, device=device, precision=precision)
        for part in (labelled.training, labelled.test)
    )
    if backbone is not None:
        backbone.to("cpu")
    training, test = (Features(*(each.to(device) for each in part)) for part in (training, test))
    with stage(f"probe {subject.encoder}", len(missing)) as bar:
        for probe in missing:
            measured = PROBES[probe](subject, training, test, command.seed)
            keep_outcomes(out, subject.encoder, probe, test.kept.cpu().numpy(), measured.right.cpu().numpy())
            append_rows(out / "probe.jsonl", measured.rows)
            bar.advance(1)


def _probe_dense(run: Run, backbones: Sequence[Backbone], probes: Sequence[str], split: DenseSplit) -> None:
    command, out, device, precision = run
    found = {row.probe for row in read_rows(out / "probe.jsonl")}
    if f"{split.kind}_baseline" not in found:
        append_rows(
            out / "probe.jsonl", baseline_rows(split.kind, split.training, split.test, command.dense, command.seed)
        )
    for backbone in backbones:
        missing = [probe for probe in probes if not _finished(out, backbone.name, probe)]
        if not missing:
            continue
        with stage(f"{split.kind} {backbone.name}", len(missing)) as bar:
            for probe in missing:
                rows = dense_rows(
                    backbone, probe, split.training, split.test, command.dense, out, device, precision, command.seed
                )
                append_rows(out / "probe.jsonl", rows)
                bar.advance(1)
        backbone.to("cpu")


def _ordered(rows: Sequence[Row], names: Sequence[str], probes: Sequence[str]) -> list[Row]:
    """Sort by probe, then as encoders were asked for; what needs none comes last."""
    return sorted(
        rows,
        key=lambda row: (
            probes.index(row.probe) if row.probe in probes else len(probes),
            names.index(row.encoder) if row.encoder in names else len(names),
        ),
    )


def _encoders(command: Probe) -> list[str]:
    names = [command.encoder] if isinstance(command.encoder, str) else command.encoder
    if not isinstance(names, list) or not names or not all(isinstance(each, str) and each for each in names):
        raise BadInput(f"encoder={command.encoder} must name an encoder, or several: encoder=[random:ti,runs/a/b]")
    names = list(dict.fromkeys(names))
    if len({slug(name) for name in names}) < len(names):
        raise BadInput(f"two of the encoders {', '.join(names)} would give their files the same name; rename one")
    return names


def _probes(command: Probe) -> list[str]:
    for name in command.probes:
        if name not in ("auto", *PROBES, *DENSE_PROBES):
            known = ("auto", *PROBES, *DENSE_PROBES)
            raise UnknownName(f"no probe {name!r}; there are: {', '.join(known)}{closest(name, known)}")
    if not command.probes:
        raise BadInput(f"probes=[] asks for none; there are: {', '.join(('auto', *PROBES, *DENSE_PROBES))}")
    if command.layers not in LAYERS:
        raise UnknownName(f"layers={command.layers!r} is not one of: {', '.join(LAYERS)}")
    if command.dense.widths not in WIDTHS:
        raise UnknownName(f"dense.widths={command.dense.widths!r} is not one of: {', '.join(WIDTHS)}")
    named = [PROBES if name == "auto" else [name] for name in command.probes]
    return list(dict.fromkeys(probe for group in named for probe in group))


def _subject(backbone: Backbone | None) -> Subject:
    if backbone is None:
        return Subject("pixels", "none", -1, "thumbnail")
    return Subject(backbone.name, backbone.weights, backbone.network.block_count - 1)


def _finished(out: Path, encoder: str, probe: str) -> bool:
    return any((row.encoder, row.probe) == (encoder, probe) for row in read_rows(out / "probe.jsonl"))
