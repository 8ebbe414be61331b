"""Write an encoder to be shipped, in half precision and with its model card: package_encoder.py SOURCE[@SIZE] TARGET."""

import sys
from pathlib import Path

import torch

from pixio_robot.backbones import load_encoder, save_encoder
from pixio_robot.checkpoint import load_checkpoint

CARD = Path(__file__).parent.parent / "docs" / "pixio-robot-ti.md"


def package(source: str, target: Path) -> None:
    """Copy an encoder, to be used at pictures of SIZE; the settings that trained it stay with it."""
    trained = load_checkpoint(Path(source.partition("@")[0]), kind="encoder")
    settings = {**trained.settings, "licence": "Apache-2.0", "model_card": CARD.read_text()}
    save_encoder(load_encoder(source), target, settings, trained.step, torch.float16)


if __name__ == "__main__":
    package(sys.argv[1], Path(sys.argv[2]))
    print(f"{sys.argv[2]}: {Path(sys.argv[2]).stat().st_size / 1e6:.1f} MB")
