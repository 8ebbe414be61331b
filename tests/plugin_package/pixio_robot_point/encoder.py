import torch
from torch import Tensor, nn

from pixio_robot.encoders.encoder import EncoderNetwork, LoadedEncoder, Tokens, TokenShape
from pixio_robot.encoders.preprocessing import Preprocessing


class PatchEncoder(EncoderNetwork):
    """A linear layer on square patches; the class token is the mean of the patch tokens."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.arguments = {"dim": dim, "patch": patch}
        self.project = nn.Conv2d(3, dim, kernel_size=patch, stride=patch, bias=False)
        nn.init.normal_(self.project.weight, std=0.05, generator=torch.Generator().manual_seed(0))

    def forward(self, pixels: Tensor, *, normed: bool = True) -> Tokens:
        patches = self.project(pixels).relu().flatten(2).transpose(1, 2)
        return Tokens(patches.mean(1, keepdim=True), patches)

    def token_shape(self, size: tuple[int, int]) -> TokenShape:
        patch, (height, width) = self.arguments["patch"], size
        return TokenShape(1, grid=(height // patch, width // patch), dim=self.arguments["dim"])


def load_patches(text: str) -> LoadedEncoder:
    """Load ``patches:DIM``."""
    network = PatchEncoder(dim=int(text), patch=8)
    return LoadedEncoder(network, Preprocessing(size=(64, 64)), weights="random")
