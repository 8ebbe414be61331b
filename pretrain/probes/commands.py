"""The command probe: its settings and what it does."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ...command import Command
from ...errors import UnknownName
from ...settings import MISSING, Hardware, key

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class DenseSettings:
    """How heads for depth and segmentation are trained on frozen tokens. Published: 45,000 steps of 32 images."""

    train_images: int = key(600, "training images at most, evenly spaced; their features are kept in memory", least=2)
    test_images: int = key(200, "test images at most, evenly spaced", least=1)
    epochs: int = key(20, "passes over the training images; the last one is reported", least=1)
    batch: int = key(16, "training images a step", least=2)
    linear_rate: float = key(1e-2, "learning rate of the linear heads (AdamW); published 2e-4")
    dpt_rate: float = key(1e-3, "learning rate of the DPT heads (AdamW); published 1e-4")
    weight_decay: float = key(0.01, "weight decay of the heads")
    widths: str = key("small", "size of the DPT heads: small, base, published (for large encoders)")
    max_depth: float | None = key(None, "largest depth to use [m]; null means 1.25 times the largest of training")


@dataclass
class Probe(Hardware):
    """Measure frozen features: k-NN, linear probes, depth and segmentation heads."""

    encoder: Any = key(MISSING, "encoder, as for load_encoder, or a list of them to compare")
    images: Any = key(MISSING, "training images, with labels or depth: folder, tar shards, HDF5", free=True)
    test: Any = key(None, "test images of the same kind; null splits images", free=True)
    probes: list[str] = key(
        ["auto"], "knn, linear, depth_linear, depth_dpt, segmentation_linear, segmentation_dpt; auto is knn and linear"
    )
    layers: str = key("last", "blocks to probe: last, or all (Pixio encoders only)")
    val_images: float = key(0.2, "without test: images to test on, a share below 1 or a number")
    seed: int = key(0, "seed of the split and of the images that the weight decay is chosen on", least=0)
    dense: DenseSettings = field(default_factory=DenseSettings)
    cache: str = key("runs/cache", "folder of the image indexes", free=True)
    out: str | None = key(None, "run folder; null means runs/probe/<digest of settings, images, encoders>", free=True)


def run_probe(settings: Probe) -> int:
    """Probe encoders."""
    from ...report.tables import print_probes

    print_probes(*probe_encoders(settings))
    return 0


def probe_encoders(settings: Probe) -> "tuple[Path, dict[str, Any]]":
    """Probe encoders, or resume; return the run folder and the content of its ``result.json``."""
    from pathlib import Path

    from ...encoders.load import load_encoder
    from ...hardware import choose_device, choose_precision
    from ...report.page import write_report
    from ...run_folder import open_run, settings_digest, write_json
    from .dense_runs import DENSE_PROBES
    from .dense_training import HeadTraining, blocks_of
    from .features import Compute
    from .figure import draw_probes
    from .labelled import ProbeImages
    from .measure import (
        LAYERS,
        ProbeConfig,
        encoder_names,
        open_probe_images,
        ordered,
        probe_dense,
        probe_labelled,
        probe_names,
    )
    from .results import probe_result
    from .rows import read_rows

    names, probes = encoder_names(settings.encoder), probe_names(settings.probes)
    if settings.layers not in LAYERS:
        raise UnknownName(f"layers={settings.layers!r} is not one of: {', '.join(LAYERS)}")
    heads, device = HeadTraining(**asdict(settings.dense)), choose_device(settings.device)
    compute = Compute(device, choose_precision(settings.precision, device))
    config = ProbeConfig(settings.layers, heads, compute, settings.seed)
    sources = ProbeImages(settings.images, settings.test, settings.val_images, settings.seed, Path(settings.cache))
    labelled, dense = open_probe_images(sources, probes)
    backbones = [load_encoder(name) for name in names]
    for backbone in backbones:
        for probe in probes:
            if probe in DENSE_PROBES:
                blocks_of(backbone, DENSE_PROBES[probe][1])  # refuses before any training
    images = [each.fingerprint for each in (labelled, *dense) if each is not None]
    inputs = " ".join([*images, *(each.fingerprint() for each in backbones)])
    out = Path(settings.out or f"runs/probe/{settings_digest(settings, inputs)}")
    open_run(out, settings, inputs)
    if labelled is not None:
        probe_labelled(out, backbones, probes, labelled, config)
    for split in dense:
        probe_dense(out, backbones, probes, split, config)
    rows = ordered(read_rows(out / "probe.jsonl"), names, probes)
    draw_probes(out / "figure.png", rows)
    result = probe_result(sources, heads, labelled, dense, rows, out)
    write_json(out / "result.json", result)
    write_report(out)
    return out, result


COMMANDS = {"probe": Command(Probe, run_probe)}
