"""The bundled encoder: in the wheel, small, half precision, with its card; its recipe runs; its numbers are its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pixio_robot
from pixio_robot.checkpoint import load_checkpoint, read_safetensors
from pixio_robot.encoders.load import BUNDLED, load_encoder
from pixio_robot.encoders.pixio import PixioEncoder
from pixio_robot.envs.registry import make
from pixio_robot.policies.commands import Quickstart

FILE = BUNDLED["pixio-robot-ti"]
ROOT = Path(pixio_robot.__file__).resolve().parent.parent
RECIPE = ROOT / "examples" / "bundled_encoder.sh"
in_checkout = pytest.mark.skipif(not RECIPE.is_file(), reason="runs in a checkout")


def test_it_is_small_and_explains_itself() -> None:
    assert FILE.stat().st_size <= 12e6
    _, tensors = read_safetensors(FILE)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    shipped = load_checkpoint(FILE, kind="encoder")
    settings = shipped.settings
    assert settings["licence"] == "Apache-2.0" and shipped.arguments["encoder"]["image_size"] == 256
    for section in ("What it is not for", "Data", "Recipe", "Results"):
        assert f"## {section}" in settings["model_card"]


@in_checkout
def test_the_card_inside_is_the_card_beside() -> None:
    inside = load_checkpoint(FILE, kind="encoder").settings["model_card"]
    beside = (ROOT / "docs" / "pixio-robot-ti.md").read_text()
    assert inside == beside, "run: python examples/package_encoder.py FILE FILE, with the bundled file twice"


def test_it_loads_as_a_ti_at_256() -> None:
    backbone = load_encoder("pixio-robot-ti")
    assert backbone.weights == "trained" and backbone.preprocessing.size == (256, 256)
    assert backbone.token_shape == (8, (16, 16), 192)
    random = PixioEncoder.preset("ti")
    shapes = {name: each.shape for name, each in backbone.network.state_dict().items()}
    assert shapes == {name: each.shape for name, each in random.state_dict().items()}
    assert all(each.dtype == torch.float32 and torch.isfinite(each).all() for each in backbone.parameters())


def test_it_is_what_a_newcomer_gets() -> None:
    assert Quickstart().encoder == "pixio-robot-ti"


def test_its_tokens_locate_objects_better_than_random_ones() -> None:
    """In a scene it was not trained on, the nearest image by class tokens has its ball nearer than by random ones."""
    env = make("toy/reach", observe=("rgb", "state"), render="fast")
    seen = [env.reset(seed=seed)[0] for seed in range(120)]
    env.close()
    images, places = np.stack([each["rgb"] for each in seen]), np.stack([each["state"][3:] for each in seen])
    errors = {}
    for name in ("pixio-robot-ti", "random:ti:0"):
        encoder = load_encoder(name)
        with torch.inference_mode():
            pixels = encoder.preprocess(torch.from_numpy(images))
            tokens = torch.cat([encoder(part).cls.mean(1) for part in pixels.split(20)])
        tokens = (tokens - tokens.mean(0)) / tokens.std(0)
        distances = torch.cdist(tokens, tokens).fill_diagonal_(torch.inf)
        errors[name] = float(np.linalg.norm(places - places[distances.argmin(1)], axis=1).mean())
    assert errors["pixio-robot-ti"] < 0.9 * errors["random:ti:0"], errors


@in_checkout
@pytest.mark.slow
def test_its_recipe_runs(tmp_path: Path) -> None:
    binaries = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for _ in range(2):  # the second time everything is found
        subprocess.run(["bash", RECIPE, "none", tmp_path, "tiny"], env=environment, check=True, timeout=280)
    made = load_checkpoint(tmp_path / "pixio-robot-ti.safetensors", kind="encoder")
    assert made.step == 3 and made.settings["samples_seen"] == 24
