"""Which class tokens a policy uses, for chunks of actions and several cameras."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pixio_robot.cortexbench.token_use import token_use
from pixio_robot.datasets.dataset import EpisodeDataset
from pixio_robot.encoders.load import Backbone
from pixio_robot.policies.build import PolicyDesign
from pixio_robot.policies.cloning import CloningSetup, Prepared, prepare_cloning
from pixio_robot.policies.mlp import MlpConfig, MlpPolicy
from pixio_robot.policies.policy import Memory, Observation
from pixio_robot.policies.settings import ObservationSettings


def _prepared(dataset: EpisodeDataset, backbone: Backbone | None, fusion: str = "concat", horizon: int = 1) -> Prepared:
    encoder = "none" if backbone is None else "tiny"
    config = MlpConfig(layers=[16], output_init_scale=1.0, fusion=fusion)
    design = PolicyDesign(encoder, config, ObservationSettings(steps=2), horizon)
    return prepare_cloning(dataset, design, backbone, CloningSetup(cache=Path("cache")))


def test_only_the_first_action_of_a_chunk_counts(toy_demos: EpisodeDataset, tiny: Backbone) -> None:
    prepared = _prepared(toy_demos, tiny, horizon=4)
    used = token_use(prepared.model, prepared.data)
    assert isinstance(prepared.model.policy, MlpPolicy)
    actions = prepared.model.spec.action_dim
    with torch.no_grad():
        prepared.model.policy.head.layers[-1].bias[actions:] += 1.0  # later actions are worse
    assert used is not None and len(used) == 8 and np.isfinite(used).all() and any(used)
    assert token_use(prepared.model, prepared.data) == used


def test_a_token_that_the_policy_ignores_is_not_used(toy_demos: EpisodeDataset, tiny: Backbone) -> None:
    class Ignores(MlpPolicy):
        """Ignores token 3 of every frame."""

        def predict(
            self, observation: Observation, memory: Memory, noise: Tensor | None = None
        ) -> tuple[Tensor, Memory]:
            tokens = observation["rgb.cls"].clone()
            tokens[:, :, 2] = 0.0
            return super().predict({**observation, "rgb.cls": tokens}, memory, noise)

    prepared = _prepared(toy_demos, tiny)
    prepared.model.policy.__class__ = Ignores
    used = token_use(prepared.model, prepared.data)
    assert used is not None and used[2] == 0 and all(used[:2]) and all(used[3:])


@pytest.mark.parametrize("what", ["no encoder", "no validation", "patches"])
def test_nothing_is_left_out_where_there_is_nothing(what: str, toy_demos: EpisodeDataset, tiny: Backbone) -> None:
    backbone = None if what == "no encoder" else tiny
    prepared = _prepared(toy_demos, backbone, "spatial" if what == "patches" else "concat")
    if what == "no validation":
        prepared.data.valid = prepared.data.valid[:0]
    assert token_use(prepared.model, prepared.data) is None
