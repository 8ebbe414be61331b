"""What a pre-training run costs, before it is paid for: work, memory, speed and hours, each assumption named.

Shapes: N patches, V visible patches, K class tokens, D width.
"""

from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch

from ..encoders.pixio import PixioEncoder
from ..hardware import autocast
from ..training.distributed import choose_parallel
from .commands import Pretrain
from .decoder import PixelDecoder
from .mae import MaskedAutoencoder
from .masking import MaskShape

# dense bf16 peak [FLOP/s] and memory [bytes] as the makers state them
DEVICES: dict[str, tuple[float, float]] = {
    "h100": (989e12, 80e9),
    "h200": (989e12, 141e9),
    "a100": (312e12, 80e9),
    "l40s": (362e12, 48e9),
    "rtx4090": (165e12, 24e9),
}
PER_NODE = 8  # devices of a node, for plans
BACKWARD = 3.0  # forward and backward together cost three forwards; measured with PyTorch's counter


def encoder_flops(encoder: PixioEncoder, patches: int) -> float:
    """Return the forward FLOPs of an encoder that embeds and sees `patches` patches of one image (2 per MAC)."""
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
class Plan:
    """What a run would cost."""

    rows: list[tuple[str, str]]  # what, how much
    assumptions: list[str]


def plan(
    model: MaskedAutoencoder, shape: MaskShape, settings: Pretrain, steps: int, device: torch.device, precision: str
) -> Plan:
    """Work out FLOPs, memory a device, images/s and device-hours.

    Args:
        model: may lie on the meta device; only its sizes are read.
        device: measured where ``plan_device=here``.
        precision: of the arithmetic here.
    """
    encoder = encoder_flops(model.encoder, shape.visible)
    decoder = decoder_flops(model.decoder, shape.visible, shape.patches)
    work = BACKWARD * (encoder + decoder)
    samples = steps * settings.batch
    if settings.plan_device == "here":
        peak, room = matmul_peak(device, precision), float("inf")
        rates = (0.6, 0.6)
        source = f"matrix products on this {device.type} reach {peak / 1e12:.3g} TFLOP/s in {precision} (measured now)"
    else:
        peak, room = DEVICES[settings.plan_device]
        rates = (_share(model.encoder.dim), _share(model.decoder.arguments["dim"]))
        source = (
            f"one {settings.plan_device} peaks at {peak / 1e12:.0f} TFLOP/s dense bf16 and has {room / 1e9:.0f} GB "
            "(maker's figures)"
        )
    passes = (
        BACKWARD + (settings.activation_checkpointing == "all"),
        BACKWARD + (settings.activation_checkpointing != "none"),
    )
    seconds = (passes[0] * encoder / rates[0] + passes[1] * decoder / rates[1]) / peak
    images = settings.plan_devices / seconds
    memory = _memory(model, shape, settings, precision)
    fits = "" if sum(memory.values()) < room else f": DOES NOT FIT its {room / 1e9:.0f} GB"
    hours = samples * seconds / 3600
    rows = [
        ("encoder", f"{_count(model.encoder)} parameters, {encoder / 1e9:.4g} GFLOP forward an image"),
        ("decoder", f"{_count(model.decoder)} parameters, {decoder / 1e9:.4g} GFLOP forward an image"),
        ("share of the decoder", f"{decoder / (encoder + decoder):.1%} of the work"),
        ("hidden", f"{shape.ratio:.2%} of {shape.patches} patches; {shape.visible} visible"),
        ("training", f"{work / 1e9:.4g} GFLOP an image, {work * samples:.3g} FLOP in all"),
        ("length", f"{steps:,} steps of {settings.batch:,} images = {samples:,} images"),
        *[(f"memory: {name}", f"{size / 1e9:.3g} GB a device") for name, size in memory.items()],
        ("memory in all", f"{sum(memory.values()) / 1e9:.3g} GB a device{fits}"),
        ("speed", f"{images:,.4g} images/s on {settings.plan_devices} x {settings.plan_device}"),
        ("time", f"{hours / settings.plan_devices:,.3g} hours, {hours:,.4g} device-hours"),
    ]
    shards = _shards(settings, model)
    assumptions = [
        source,
        f"encoder and decoder reach {rates[0]:.0%} and {rates[1]:.0%} of that (assumed; a run reports its own share)",
        "forward and backward cost three forwards; data loading and communication hide behind the work",
        "weights, gradients and AdamW's moments take 16 bytes a parameter, "
        + (f"sharded over {shards} devices" if shards > 1 else "on every device"),
        "a token of width D keeps 36 D bytes a block for the backward pass in bf16, twice that in fp32; "
        "activation_checkpointed blocks keep 4 D",
    ]
    return Plan(rows, assumptions)


def _share(dim: int) -> float:
    """Return the share of peak assumed of blocks of a width: narrow ones wait for memory."""
    table = {512: 0.25, 768: 0.30, 1024: 0.36, 1280: 0.40, 1536: 0.42, 3072: 0.48}
    return next((share for width, share in sorted(table.items(), reverse=True) if dim >= width), 0.15)


def _shards(settings: Pretrain, model: MaskedAutoencoder) -> int:
    """Return over how many devices weights and moments are cut."""
    how = choose_parallel(settings.parallel, model, settings.plan_devices, PER_NODE)
    return {"ddp": 1, "fsdp": settings.plan_devices, "hsdp": min(settings.plan_devices, PER_NODE)}[how]


def _memory(model: MaskedAutoencoder, shape: MaskShape, settings: Pretrain, precision: str) -> dict[str, float]:
    """Return bytes a device, by purpose."""
    parameters = sum(each.numel() for each in model.parameters())
    state = 16.0 * parameters / _shards(settings, model)
    share = max(1, settings.batch // settings.plan_devices)
    micro = min(settings.micro_batch or share, share)
    width = 36 if precision == "bf16" else 72

    def kept(part: Any, tokens: int, activation_checkpointed: bool) -> float:
        a = part.arguments
        return a["depth"] * tokens * a["dim"] * (4 if activation_checkpointed else width)

    classes = model.encoder.cls_tokens
    image = kept(model.encoder, classes + shape.visible, settings.activation_checkpointing == "all")
    image += kept(model.decoder, classes + shape.patches, settings.activation_checkpointing != "none")
    needs = {"weights and optimiser": state, f"activations of {micro} images": micro * image}
    if _shards(settings, model) > 1 and micro < share:
        needs["whole gradients between passes"] = 4.0 * parameters
    return needs


def _count(part: torch.nn.Module) -> str:
    return f"{sum(each.numel() for each in part.parameters()) / 1e6:,.1f} M"
