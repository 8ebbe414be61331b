"""Half precision written into a network: what is multiplied is half, what is summed up and normalised stays fp32.

Outliers of trained transformers live in the residual stream, which fp16 (65504 at most) may not hold, and LayerNorm
sums squares; both stay fp32 here. Linear layers and attention are half, in fp16 the patch embedding too. Everything
after the tokens is small and stays fp32.
"""

import torch
from torch import Tensor, nn

from ...encoders.pixio import PixioEncoder
from ...errors import BadInput
from .program import EncoderProgram, PolicyProgram, Program, TokenStage

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class CastOutput(nn.Module):
    """A module in fp32 whose output is cast."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x).to(self.dtype)


class CastInput(nn.Module):
    """A module in half precision whose input is cast."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.to(self.dtype))


def to_half(program: Program, precision: str) -> None:
    """Give a program's encoder half precision, in place.

    Args:
        precision: "fp16" or "bf16".

    Raises:
        BadInput: if it has no encoder, or one whose layers we do not know.
    """
    dtype = HALVES[precision]
    network = stage_of(program, precision).network
    assert isinstance(network, PixioEncoder)
    if dtype == torch.float16:  # ONNX has no bf16 convolution at opset 20
        network.patch_embed.proj = CastInput(network.patch_embed.proj, dtype)  # type: ignore[assignment]
    for block in network.blocks:
        assert isinstance(block, nn.Module)
        for name in ("norm1", "norm2"):
            setattr(block, name, CastOutput(getattr(block, name), dtype))
        block.attn.to(dtype)
        block.mlp.to(dtype)


def stage_of(program: Program, precision: str) -> TokenStage:
    """Return the part of a program that holds its Pixio encoder.

    Raises:
        BadInput: if there is none.
    """
    stage = program.tokens if isinstance(program, EncoderProgram) else None
    if isinstance(program, PolicyProgram):
        stage = program.stage if isinstance(program.stage, TokenStage) else None
    if stage is None:
        raise BadInput(f"precision {precision} is for encoders, and this policy has none; its network is small: fp32")
    if not isinstance(stage.network, PixioEncoder):
        raise BadInput(f"precision {precision} is written for Pixio encoders alone; export this one with fp32")
    return stage
