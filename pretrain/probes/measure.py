"""Run probes on encoders: rows in ``probe.jsonl``, one probe of one encoder after the other; finished ones are kept."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...encoders.load import Backbone
from ...encoders.pixio import PixioEncoder
from ...errors import BadInput, UnknownName, closest
from ...progress import stage
from .classification import PROBES, Subject
from .dense_runs import DENSE_PROBES, DenseSplit, baseline_rows, dense_rows, open_dense_split, slug
from .dense_training import HeadTraining
from .features import Compute, Features, encode, pixel_features
from .labelled import Labelled, ProbeImages, open_labelled
from .outcomes import keep_outcomes
from .rows import Row, append_rows, read_rows

LAYERS = ("last", "all")


class ProbeConfig(NamedTuple):
    """How probes are run."""

    layers: str  # one of LAYERS
    heads: HeadTraining
    compute: Compute
    seed: int


def open_probe_images(sources: ProbeImages, probes: Sequence[str]) -> tuple[Labelled | None, list[DenseSplit]]:
    """Open the images that probes need: with labels, with depth, with segmentation.

    Raises:
        DataError: if images lack the labels or the depth that is needed, or test classes are new.
    """
    kinds = dict.fromkeys(DENSE_PROBES[probe][0] for probe in probes if probe in DENSE_PROBES)
    labelled = open_labelled(sources) if any(probe in PROBES for probe in probes) else None
    return labelled, [open_dense_split(sources, kind) for kind in kinds]


def probe_labelled(
    out: Path, backbones: Sequence[Backbone], probes: Sequence[str], labelled: Labelled, config: ProbeConfig
) -> None:
    """Run the probes of labelled images on raw pixels, the reference, and on every encoder."""
    chosen = [probe for probe in probes if probe in PROBES]
    for backbone in [None, *backbones]:
        _probe_labelled(out, backbone, chosen, labelled, config)


def probe_dense(
    out: Path, backbones: Sequence[Backbone], probes: Sequence[str], split: DenseSplit, config: ProbeConfig
) -> None:
    """Run the probes of one kind of dense images on every encoder, after the baselines."""
    chosen = [probe for probe in probes if DENSE_PROBES.get(probe, ("",))[0] == split.kind]
    found = {row.probe for row in read_rows(out / "probe.jsonl")}
    if f"{split.kind}_baseline" not in found:
        rows = baseline_rows(split.kind, split.training, split.test, config.heads, config.seed)
        append_rows(out / "probe.jsonl", rows)
    for backbone in backbones:
        missing = [probe for probe in chosen if not _finished(out, backbone.name, probe)]
        if not missing:
            continue
        with stage(f"{split.kind} {backbone.name}", len(missing)) as bar:
            for probe in missing:
                images = split.training, split.test
                rows = dense_rows(backbone, probe, *images, config.heads, out, config.compute, config.seed)
                append_rows(out / "probe.jsonl", rows)
                bar.advance(1)
        backbone.to("cpu")


def ordered(rows: Iterable[Row], names: Sequence[str], probes: Sequence[str]) -> list[Row]:
    """Sort by probe, then by encoder, in the order of the settings; rows without either come last."""
    return sorted(
        rows,
        key=lambda row: (
            probes.index(row.probe) if row.probe in probes else len(probes),
            names.index(row.encoder) if row.encoder in names else len(names),
        ),
    )


def encoder_names(encoder: Any) -> list[str]:
    """Return the names of encoders from a name or a list of names.

    Raises:
        BadInput: for anything else, or two names whose files would be called the same.
    """
    names = [encoder] if isinstance(encoder, str) else encoder
    if not isinstance(names, list) or not names or not all(isinstance(each, str) and each for each in names):
        raise BadInput(f"encoder={encoder} must name an encoder, or several: encoder=[random:ti,runs/a/b]")
    names = list(dict.fromkeys(names))
    if len({slug(name) for name in names}) < len(names):
        raise BadInput(f"two of the encoders {', '.join(names)} would give their files the same name; rename one")
    return names


def probe_names(names: Sequence[str]) -> list[str]:
    """Return the probes that names stand for; "auto" is all probes of labelled images.

    Raises:
        UnknownName, BadInput: for an unknown name, or none.
    """
    known = ("auto", *PROBES, *DENSE_PROBES)
    for name in names:
        if name not in known:
            raise UnknownName(f"no probe {name!r}; there are: {', '.join(known)}{closest(name, known)}")
    if not names:
        raise BadInput(f"probes=[] names none; there are: {', '.join(known)}")
    return list(dict.fromkeys(probe for name in names for probe in (PROBES if name == "auto" else [name])))


def _probe_labelled(
    out: Path, backbone: Backbone | None, probes: Sequence[str], labelled: Labelled, config: ProbeConfig
) -> None:
    subject, device = _subject(backbone), config.compute.device
    missing = [probe for probe in probes if not _finished(out, subject.encoder, probe)]
    if not missing:
        return
    training, test = (
        pixel_features(part)
        if backbone is None
        else encode(backbone, part, layers=config.layers == "all", compute=config.compute)
        for part in (labelled.training, labelled.test)
    )
    if backbone is not None:
        backbone.to("cpu")
    training, test = (Features(*(each.to(device) for each in part)) for part in (training, test))
    with stage(f"probe {subject.encoder}", len(missing)) as bar:
        for probe in missing:
            measured = PROBES[probe](subject, training, test, config.seed)
            keep_outcomes(out, subject.encoder, probe, test.kept.cpu().numpy(), measured.right.cpu().numpy())
            append_rows(out / "probe.jsonl", measured.rows)
            bar.advance(1)


def _subject(backbone: Backbone | None) -> Subject:
    if backbone is None:
        return Subject("pixels", "none", -1, "thumbnail")
    network = backbone.network
    last = len(network.blocks) - 1 if isinstance(network, PixioEncoder) else -1
    return Subject(backbone.name, backbone.weights, last)


def _finished(out: Path, encoder: str, probe: str) -> bool:
    return any((row.encoder, row.probe) == (encoder, probe) for row in read_rows(out / "probe.jsonl"))
