"""Export: one program that acts as the eager policy does, whatever it looks at, in a bundle that says what it is."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pixio_robot import cli
from pixio_robot.backbones import Backbone
from pixio_robot.embedding import Embedder
from pixio_robot.envs.registry import EnvRequest
from pixio_robot.errors import BadInput, CheckpointError
from pixio_robot.policies.eager import EagerPolicy
from pixio_robot.policies.export.pixels import DepthPictures, Pixels, SmallDepth, SmallPictures
from pixio_robot.policies.export.program import PolicyProgram, program_of
from pixio_robot.policies.visuomotor import Agent, EncoderIdentity, LoadedPolicy, Visuomotor
from pixio_robot.preprocessing import Preprocessing, preprocess
from pixio_robot.runtime.bundle import STARTS
from pixio_robot.schemas import EmbeddingSettings, PolicySettings

CPU = torch.device("cpu")
SIZE = 64


def _policy(backbone: Backbone | None, kind: str = "bc", pictures: tuple[str, ...] = ("rgb",), **keys: object):
    """An untrained policy whose numbers are all in play: batch statistics away from 0 and 1, actions within limits."""
    settings = EmbeddingSettings(**keys)
    tokens = backbone.token_shape if backbone is not None else None
    if kind == "cnn":
        from pixio_robot.policies.pixel_network import PixelNetwork

        tokens = PixelNetwork.tokens
        settings = replace(settings, fusion="first", frames="single")
    elif tokens is not None:
        tokens = tokens._replace(dim=tokens.dim * len(pictures))
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        embedder = Embedder(tokens, settings, 5)
        policy = Visuomotor(embedder, 3, PolicySettings(layers=[16], last_scale=0.5), kind, 3, pictures).eval()
    for name, buffer in policy.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    identity = None if backbone is None else EncoderIdentity.of(backbone, "fp32")
    request = EnvRequest("toy/reach", observe=("rgb", "proprio"), image_size=SIZE, render="fast")
    return LoadedPolicy(policy, identity, request, {}, 0)


def _episode(steps: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.1, 5, (steps, SIZE, SIZE)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.2] = 0
    whole = {key: rng.integers(0, 256, (steps, SIZE, SIZE, 3), np.uint8) for key in ("rgb", "rgb_wrist")}
    whole |= {"depth": depth, "proprio": rng.normal(size=(steps, 5)).astype(np.float32)}
    whole["state"] = whole["proprio"]
    return [{key: values[step] for key, values in whole.items()} for step in range(steps)]


def _played(program: PolicyProgram, episode: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Act as `Runtime` does, with torch: what a call gives of this frame goes into the next as history."""
    kept: dict[str, torch.Tensor] = {}
    actions = []
    for step, observation in enumerate(episode):
        values = []
        for port in program.inputs:
            if port.name in observation:
                values.append(torch.from_numpy(observation[port.name])[None])
            elif port.name == STARTS:
                values.append(torch.tensor([step == 0]))
            else:
                values.append(kept.get(port.name, torch.full((1, *port.shape), torch.nan)))
        action, *newest = program(*values)
        for memory, value in zip(program.memory, newest, strict=True):
            past = kept.get(memory.history.name, value[:, None].expand(-1, memory.frames - 1, *value.shape[1:]))
            kept[memory.history.name] = torch.cat([past, value[:, None]], dim=1)[:, 1:]
        actions.append(action[0, 0].numpy())
    return np.stack(actions)


@pytest.mark.parametrize(
    ("kind", "pictures", "keys"),
    [
        ("bc", ("rgb",), dict(fusion="mean")),
        ("bc", ("rgb",), dict(fusion="concat", frames="single", proprio=False)),
        ("bc", ("rgb",), dict(fusion="first", frames="stack", history=2, normed=False)),
        ("bc", ("rgb", "rgb_wrist"), dict(fusion="attention")),
        ("bc", ("rgb",), dict(fusion="spatial", frames="stack")),
        ("bc", ("rgb", "depth"), dict(fusion="mean", depth="channels", depth_code="colours")),
        ("bc", ("rgb",), dict(fusion="mean", depth="late", depth_code="log")),
        ("blind", ("rgb",), dict()),
        ("blind", ("rgb",), dict(depth="late")),
        ("cnn", ("rgb",), dict()),
        ("state", ("rgb",), dict()),
    ],
)
def test_a_program_acts_as_the_eager_policy(
    kind: str, pictures: tuple[str, ...], keys: dict[str, object], tiny: Backbone
) -> None:
    backbone = tiny if kind == "bc" else None
    loaded = _policy(backbone, kind, pictures, **keys)
    episode = _episode(4)
    eager = EagerPolicy(Agent(loaded, backbone, CPU))
    expected = np.stack([eager.act(observation)[0] for observation in episode])
    with torch.inference_mode():
        played = _played(program_of(loaded, backbone), episode)
    assert np.ptp(expected, axis=0).min() > 1e-3, "the policy must react, or nothing is compared"
    assert np.abs(played - expected).max() < 2e-3 * np.ptp(expected)
