"""Cost of a pre-training run before it starts: FLOPs, memory, speed and hours, with all assumptions.

Shapes: N patches, V visible patches, K class tokens, D width.
"""

from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch

from ..encoders.pixio import PixioEncoder
from ..errors import UnknownName, closest
from ..hardware import autocast
from ..training.distributed import choose_parallel
from .decoder import PixelDecoder
from .loader import Batching
from .mae import MaskedAutoencoder
from .masking import MaskShape
from .train_config import Execution

# dense bf16 peak [FLOP/s] and memory [bytes], manufacturers' figures
DEVICES: dict[str, tuple[float, float]] = {
    "h100": (989e12, 80e9),
    "h200": (989e12, 141e9),
    "a100": (312e12, 80e9),
    "l40s": (362e12, 48e9),
    "rtx4090": (165e12, 24e9),
}
PER_NODE = 8  # devices of a node
BACKWARD = 3.0  # forward and backward together cost three forwards; measured with PyTorch's counter


@dataclass(frozen=True)
class Cluster:
    """Devices to estimate for.

    Raises:
        UnknownName: for an unknown device.
    """

    device: str = "here"  # this machine's device, or a name of `DEVICES`
    count: int = 1

    def __post_init__(self) -> None:
        known = ("here", *DEVICES)
        if self.device not in known:
            raise UnknownName(
                f"no plan_device {self.device!r}; there are: {', '.join(known)}{closest(self.device, known)}"
            )


def encoder_flops(encoder: PixioEncoder, patches: int) -> float:
    """Return the forward FLOPs of an encoder that embeds `patches` patches of one image (2 per MAC)."""
    a: dict[str, Any] = encoder.arguments
    embed = 2 * patches * 3 * a["patch"] ** 2 * a["dim"]
    return embed + a["depth"] * _block_flops(a["cls_tokens"] + patches, a["dim"])


def decoder_flops(decoder: PixelDecoder, visible: int, patches: int) -> float:
    """Return the forward FLOPs of a decoder that reads `visible` patches and predicts `patches`."""
    a = decoder.arguments
    embed = 2 * (a["cls_tokens"] + visible) * a["encoder_dim"] * a["dim"]
    head = 2 * patches * a["dim"] * 3 * a["patch"] ** 2
    return embed + a["depth"] * _block_flops(a["cls_tokens"] + patches, a["dim"]) + head


def _block_flops(tokens: int, dim: int) -> float:
    """qkv and projection 8 L D^2, MLP 16 L D^2, attention 4 L^2 D."""
    return 24 * tokens * dim**2 + 4 * tokens**2 * dim


def training_flops(model: MaskedAutoencoder, shape: MaskShape) -> float:
    """Return the FLOPs of one image's forward and backward pass."""
    forward = encoder_flops(model.encoder, shape.visible) + decoder_flops(model.decoder, shape.visible, shape.patches)
    return BACKWARD * forward


def matmul_peak(device: torch.device, precision: str) -> float:
    """Measure the fastest square matrix product of this device, at the training precision [FLOP/s]."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    times = []
    with torch.no_grad(), autocast(device, precision):
        if precision == "bf16":
            a, b = a.bfloat16(), b.bfloat16()
        for _ in range(7):
            began = perf_counter()
            a @ b
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(perf_counter() - began)
    return 2 * size**3 / median(times[2:])


@dataclass
class CostEstimate:
    """Cost of a run."""

    rows: list[tuple[str, str]]  # quantity, amount
    assumptions: list[str]


def estimate_cost(
    model: MaskedAutoencoder,
    shape: MaskShape,
    batching: Batching,
    execution: Execution,
    cluster: Cluster,
    *,
    steps: int,
    device: torch.device,
    precision: str,
) -> CostEstimate:
    """Estimate FLOPs, memory a device, images/s and device-hours.

    Args:
        model: may be on the meta device; only its sizes are read.
        steps: of the whole run.
        device: measured if the cluster's is "here".
        precision: "fp32" or "bf16".
    """
    encoder = encoder_flops(model.encoder, shape.visible)
    decoder = decoder_flops(model.decoder, shape.visible, shape.patches)
    work = BACKWARD * (encoder + decoder)
    samples = steps * batching.batch
    if cluster.device == "here":
        peak, capacity = matmul_peak(device, precision), float("inf")
        rates = (0.6, 0.6)
        source = f"matrix products on this {device.type} reach {peak / 1e12:.3g} TFLOP/s in {precision} (measured now)"
    else:
        peak, capacity = DEVICES[cluster.device]
        rates = (_share(model.encoder.dim), _share(model.decoder.arguments["dim"]))
        source = (
            f"one {cluster.device} peaks at {peak / 1e12:.0f} TFLOP/s dense bf16 and has {capacity / 1e9:.0f} GB "
            "(manufacturer's figures)"
        )
    passes = (
        BACKWARD + (execution.activation_checkpointing == "all"),
        BACKWARD + (execution.activation_checkpointing != "none"),
    )
    seconds = (passes[0] * encoder / rates[0] + passes[1] * decoder / rates[1]) / peak
    images = cluster.count / seconds
    memory = _memory(model, shape, batching, execution, cluster, precision)
    fits = "" if sum(memory.values()) < capacity else f": DOES NOT FIT its {capacity / 1e9:.0f} GB"
    hours = samples * seconds / 3600
    rows = [
        ("encoder", f"{_count(model.encoder)} parameters, {encoder / 1e9:.4g} GFLOP forward an image"),
        ("decoder", f"{_count(model.decoder)} parameters, {decoder / 1e9:.4g} GFLOP forward an image"),
        ("decoder's share", f"{decoder / (encoder + decoder):.1%} of the FLOPs"),
        ("hidden", f"{shape.ratio:.2%} of {shape.patches} patches; {shape.visible} visible"),
        ("training", f"{work / 1e9:.4g} GFLOP an image, {work * samples:.3g} FLOP in total"),
        ("length", f"{steps:,} steps of {batching.batch:,} images = {samples:,} images"),
        *[(f"memory: {name}", f"{size / 1e9:.3g} GB a device") for name, size in memory.items()],
        ("memory in total", f"{sum(memory.values()) / 1e9:.3g} GB a device{fits}"),
        ("speed", f"{images:,.4g} images/s on {cluster.count} x {cluster.device}"),
        ("time", f"{hours / cluster.count:,.3g} hours, {hours:,.4g} device-hours"),
    ]
    shards = _shards(execution, cluster, model)
    assumptions = [
        source,
        f"encoder and decoder reach {rates[0]:.0%} and {rates[1]:.0%} of that (assumed; a run reports its own share)",
        "forward and backward cost three forwards; data loading and communication overlap with computation",
        "weights, gradients and AdamW's moments take 16 bytes a parameter, "
        + (f"sharded over {shards} devices" if shards > 1 else "on every device"),
        "a token of width D keeps 36 D bytes a block for the backward pass in bf16, twice that in fp32; "
        "checkpointed blocks keep 4 D",
    ]
    return CostEstimate(rows, assumptions)


def _share(dim: int) -> float:
    """Return the assumed share of peak for blocks of a width; narrow ones are bound by memory."""
    table = {512: 0.25, 768: 0.30, 1024: 0.36, 1280: 0.40, 1536: 0.42, 3072: 0.48}
    return next((share for width, share in sorted(table.items(), reverse=True) if dim >= width), 0.15)


def _shards(execution: Execution, cluster: Cluster, model: MaskedAutoencoder) -> int:
    """Return the number of devices that weights and moments are sharded over."""
    parallel = choose_parallel(execution.parallel, model, cluster.count, PER_NODE)
    return {"ddp": 1, "fsdp": cluster.count, "hsdp": min(cluster.count, PER_NODE)}[parallel]


def _memory(
    model: MaskedAutoencoder,
    shape: MaskShape,
    batching: Batching,
    execution: Execution,
    cluster: Cluster,
    precision: str,
) -> dict[str, float]:
    """Return bytes a device, by purpose."""
    parameters = sum(each.numel() for each in model.parameters())
    state = 16.0 * parameters / _shards(execution, cluster, model)
    share = max(1, batching.batch // cluster.count)
    micro = min(batching.micro_batch or share, share)
    width = 36 if precision == "bf16" else 72

    def kept(part: Any, tokens: int, checkpointed: bool) -> float:
        a = part.arguments
        return a["depth"] * tokens * a["dim"] * (4 if checkpointed else width)

    classes = model.encoder.cls_tokens
    image = kept(model.encoder, classes + shape.visible, execution.activation_checkpointing == "all")
    image += kept(model.decoder, classes + shape.patches, execution.activation_checkpointing != "none")
    needs = {"weights and optimiser": state, f"activations of {micro} images": micro * image}
    if _shards(execution, cluster, model) > 1 and micro < share:
        needs["whole gradients between passes"] = 4.0 * parameters
    return needs


def _count(part: torch.nn.Module) -> str:
    return f"{sum(each.numel() for each in part.parameters()) / 1e6:,.1f} M"
