"""Write an encoder to ship, in half precision and with its model card: package_encoder.py SOURCE[@SIZE] TARGET."""

import sys
from pathlib import Path

import torch

from pixio_robot.checkpoint import load_checkpoint
from pixio_robot.encoders.load import load_encoder, save_encoder
from pixio_robot.encoders.pixio import PixioEncoder

CARD = Path(__file__).parent.parent / "docs" / "pixio-robot-ti.md"


def package(source: str, target: Path) -> None:
    """Copy an encoder, with the position table of images of SIZE; the settings that trained it stay with it."""
    trained = load_checkpoint(Path(source.partition("@")[0]), kind="encoder")
    settings = {**trained.settings, "licence": "Apache-2.0", "model_card": CARD.read_text()}
    save_encoder(at_its_size(source), target, settings, trained.step, torch.float16)


def at_its_size(source: str) -> PixioEncoder:
    """Return an encoder made for images of the size that its name says."""
    backbone = load_encoder(source)
    network = backbone.network
    assert isinstance(network, PixioEncoder)
    network.bake_positions(*backbone.token_shape.grid)
    sized = PixioEncoder(**{**network.arguments, "image_size": backbone.preprocessing.size[0]})
    sized.load_state_dict(network.state_dict())
    return sized


if __name__ == "__main__":
    package(sys.argv[1], Path(sys.argv[2]))
    print(f"{sys.argv[2]}: {Path(sys.argv[2]).stat().st_size / 1e6:.1f} MB")
