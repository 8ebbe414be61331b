"""Benchmark bundles against PyTorch, torch.compile, transformers and the measured hardware limit, in rounds."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...encoders.load import load_encoder
from ...encoders.pixio import PixioEncoder
from ...errors import BadInput, MissingExtra, UnknownName, closest
from ...hardware import choose_device
from ...jobs.workers import Worker
from ..manifest import Manifest
from .contenders import BASELINES, PRECISIONS, Spec
from .floor import Products, cpu_units
from .workers import Call, Start, time_contender, time_products

log = logging.getLogger(__name__)
SPEEDUP, SHARE = 4.0, 0.75  # targets: times as fast as eager fp32, share of the floor in bf16


@dataclass(frozen=True)
class Timing:
    """How programs are timed."""

    precision: str = "fp32"  # of the baselines
    device: str = "cpu"  # "auto", "cpu" or "cuda"
    threads: int = 1  # CPU threads of each
    rounds: int = 5  # each program is timed once per round
    calls: int = 5  # per round


class Plan(NamedTuple):
    """What is timed."""

    encoder: str  # as load_encoder takes it
    specs: list[Spec]
    device: str  # "cpu" or "cuda"


def plan_timing(bundles: Sequence[str], baselines: Sequence[str], encoder: str | None, timing: Timing) -> Plan:
    """Check what is to be timed.

    Args:
        bundles: folders.
        baselines: of `BASELINES`.
        encoder: that the baselines run; None is that of the bundles.

    Raises:
        BadInput: if there is nothing to time, or the bundles hold different encoders.
        UnknownName: for an unknown baseline or precision.
    """
    device = choose_device(timing.device).type
    for what, names, known in (("baseline", baselines, BASELINES), ("precision", [timing.precision], PRECISIONS)):
        for name in names:
            if name not in known:
                raise UnknownName(f"no {what} {name!r}{closest(name, known)}; there are: {', '.join(known)}")
    if "graph" in baselines and device != "cuda":
        raise BadInput("CUDA graphs need device=cuda; leave graph out of baselines=")
    manifests = {folder: Manifest.read(folder) for folder in bundles}
    encoder = encoder or _encoder_of(manifests)
    specs = [Spec(kind, encoder, timing.precision, device, timing.threads) for kind in baselines]
    for folder, manifest in manifests.items():
        specs.append(Spec("bundle", folder, manifest.precision, device, timing.threads))
    return Plan(encoder, specs, device)


def time_programs(plan: Plan, timing: Timing) -> dict[str, Any]:
    """Time everything in a plan; return what ``result.json`` holds."""
    backbone = load_encoder(plan.encoder)
    products = None
    if isinstance(backbone.network, PixioEncoder):
        products = Products.of(backbone.network, backbone.preprocessing.size)
    del backbone
    result = _measured(plan, products, timing)
    result |= {"encoder": plan.encoder, "device": plan.device, "threads": timing.threads}
    return result | {"rounds": timing.rounds, "calls": timing.calls, "measure": _measure(plan.device)}


def _encoder_of(manifests: dict[str, Manifest]) -> str:
    names = {str(each.encoder["name"]) for each in manifests.values() if each.encoder}
    if len(names) != 1:
        what = f"the bundles hold {', '.join(sorted(names))}" if names else "no bundle holds an encoder"
        raise BadInput(f"{what}; give encoder=NAME, e.g. encoder=random:b, or bundles of one encoder")
    return names.pop()


def _measured(plan: Plan, products: Products | None, timing: Timing) -> dict[str, Any]:
    specs, device = plan.specs, plan.device
    calls: dict[str, list[list[Call]]] = {}
    loaded: dict[str, Start] = {}
    memory: dict[str, int] = {}
    rates: dict[str, tuple[float, str]] = {}
    with ExitStack() as open_ones:
        workers = {}
        for spec in specs:
            try:
                worker = open_ones.enter_context(Worker(time_contender, spec, timing.threads))
                loaded[spec.label] = worker.receive()
            except MissingExtra as error:
                log.warning("%s is left out: %s", spec.label, error)
                continue
            workers[spec.label], calls[spec.label] = worker, []
            log.info("%s: loaded", spec.label)
        floor = None
        if products is not None:
            asked = ("fp32", "bf16", "fp16") if device == "cuda" else ("fp32", "bf16", "int8")
            floor = open_ones.enter_context(Worker(time_products, (products, asked, device), timing.threads))
            floor.receive()
        for number in range(timing.rounds):
            for label, worker in workers.items():
                worker.send(timing.calls)
                times, memory[label] = worker.receive()
                calls[label].append(times)
            if floor is not None:
                floor.send(3)
                rates = floor.receive()
            log.info("round %d of %d", number + 1, timing.rounds)
    result: dict[str, Any] = {"rows": [], "floor": {}, "targets": {}}
    if products is not None:
        result["flops"], result["tokens"] = products.flops, products.tokens
        for precision, (rate, way) in rates.items():
            result["floor"][precision] = {
                "rate": rate,
                "with": way,
                "seconds": products.flops / rate,
                "units": cpu_units(precision) if device == "cpu" else [],
            }
    base = next((each for each in calls if each == "eager fp32"), None)
    for spec in specs:
        if spec.label in calls:
            row = _row(spec, calls[spec.label], device)
            start = loaded[spec.label]
            row |= {"load": start.load._asdict(), "first": start.first._asdict(), "size": start.size}
            row["peak_memory"] = memory[spec.label]
            if base is not None:
                row["times_as_fast"] = speedups(calls[base], calls[spec.label], device)
            if (own := result["floor"].get(spec.precision)) is not None:
                row["share_of_floor"] = own["seconds"] / row[_measure(device)]["p50"]
            result["rows"].append(row)
    result["targets"] = targets(result, _measure(device))
    return result


def _measure(device: str) -> str:
    """Return which time is compared; CPU time depends less on other processes than wall time."""
    return "cpu" if device == "cpu" else "wall"


def _row(spec: Spec, rounds: list[list[Call]], device: str) -> dict[str, Any]:
    row: dict[str, Any] = {"label": spec.label, "kind": spec.kind, "precision": spec.precision}
    for name in ("wall", "cpu"):
        values = [getattr(call, name) for times in rounds for call in times]
        row[name] = {f"p{at}": float(np.percentile(values, at)) for at in (25, 50, 75, 95, 99)}
    return row


def speedups(base: list[list[Call]], other: list[list[Call]], device: str) -> list[float]:
    """Return quartiles of how many times as fast `other` is, round by round: [25 %, median, 75 %]."""
    measure = _measure(device)

    def medians(rounds: list[list[Call]]) -> np.ndarray:
        return np.array([np.median([getattr(call, measure) for call in times]) for times in rounds])

    ratios = medians(base) / medians(other)
    return [float(each) for each in np.percentile(ratios, (25, 50, 75))]


def targets(result: dict[str, Any], measure: str) -> dict[str, Any]:
    """Return whether the best bundle reaches the targets."""
    bundles = [row for row in result["rows"] if row["kind"] == "bundle"]
    if not bundles:
        return {}
    best = min(bundles, key=lambda row: row[measure]["p50"])
    found: dict[str, Any] = {"best": best["label"]}
    if "times_as_fast" in best:
        found["times_as_fast"] = {"aim": SPEEDUP, "is": best["times_as_fast"][1]}
    if (floor := result["floor"].get("bf16")) is not None:
        found["share_of_bf16_floor"] = {"aim": SHARE, "is": floor["seconds"] / best[measure]["p50"]}
        if measure == "cpu" and not floor["units"]:
            found["share_of_bf16_floor"]["why"] = "not comparable: this CPU has no bf16 units"
    for each in found.values():
        if isinstance(each, dict):
            each["met"] = each["is"] >= each["aim"] if "why" not in each else None
    return found
