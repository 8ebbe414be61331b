"""Half precision written into a network: linear layers and attention are half, sums and norms stay fp32.

Outliers of trained transformers are in the residual stream, which may exceed the range of fp16 (65504), and LayerNorm
sums squares; both stay fp32. In fp16 the patch embedding is half too. Everything after the tokens is small and stays
fp32.
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
        BadInput: if it has no encoder, or one with unknown layers.
    """
    dtype = HALVES[precision]
    network = encoder_of(program, precision)
    if dtype == torch.float16:  # ONNX has no bf16 convolution at opset 20
        network.patch_embed.proj = CastInput(network.patch_embed.proj, dtype)  # type: ignore[assignment]
    for block in network.blocks:
        for name in ("norm1", "norm2"):
            setattr(block, name, CastOutput(getattr(block, name), dtype))
        block.attn.to(dtype)
        block.mlp.to(dtype)


def encoder_of(program: Program, precision: str) -> PixioEncoder:
    """Return the Pixio encoder in a program.

    Raises:
        BadInput: if there is none.
    """
    stage = program.tokens if isinstance(program, EncoderProgram) else None
    if isinstance(program, PolicyProgram):
        stage = program.stage if isinstance(program.stage, TokenStage) else None
    if stage is None:
        raise BadInput(f"precision {precision} is for encoders, and this policy has none; its network is small: fp32")
    if not isinstance(stage.network, PixioEncoder):
        raise BadInput(f"precision {precision} is supported for Pixio encoders only; export this one with fp32")
    return stage.network
