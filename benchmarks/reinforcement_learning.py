"""SAC with the encoder outside of the learner against SAC with the encoder as features extractor.

The other side follows stable-baselines3's guide to custom extractors: a frozen encoder in a `BaseFeaturesExtractor`,
images in the replay buffer. Child processes run this file again, so heavy imports are inside the functions.
"""

import argparse
import json
import logging
import subprocess
import sys
import time
from typing import Any

import numpy as np
from timing import Section, cells, compare, in_turns, markdown, per_second, seconds

NEEDS = {"stable_baselines3": "rl"}  # package: extra of pixio-robot
TASK, SIDE, ENCODER = "toy/reach", 128, "random:ti:0"  # images are 128 px in both buffers, 256 px in the encoder
BATCH, WARMUP, STEPS, PAIRS = 8, 20, 4, 3
CAPACITY = 1000  # steps of the buffers whose memory is compared


def measure() -> Section:
    """Learn the same number of steps both ways, in turns, and fill a buffer both ways."""
    logging.getLogger("pixio_robot").setLevel(logging.ERROR)  # no warning of random weights
    ours, theirs = _ours(), _theirs()
    for model in (ours, theirs):
        model.learn(WARMUP, log_interval=None)

    def learn(model: Any) -> float:
        return seconds(lambda: model.learn(STEPS, log_interval=None, reset_num_timesteps=False)) / STEPS

    times = in_turns(lambda: learn(ours), lambda: learn(theirs), PAIRS)
    for model in (ours, theirs):
        model.env.close()
    speed = compare(f"environment steps, a gradient step of {BATCH} each", *times)
    held = {name: _in_child(name) for name in ("ours", "theirs")}
    sizes = [held[name]["buffer"] / CAPACITY for name in ("ours", "theirs")]
    weights = [_megabytes(held[name]["weights"]) for name in ("ours", "theirs")]
    rows = [
        *cells([speed], per_second),
        (
            "replay buffer, a step",
            *(f"{size / 1e3:.2f} kB" for size in sizes),
            f"**{sizes[1] / sizes[0]:.0f}**",
            "",
            "1",
        ),
        (
            f"peak memory, buffer of {CAPACITY} steps full",
            *(f"{held[name]['peak']:.0f} MB" for name in ("ours", "theirs")),
            f"**{held['theirs']['peak'] / held['ours']['peak']:.1f}**",
            "",
            "1",
        ),
        ("networks in the learner", *weights, "", "", "1"),
    ]
    return Section(
        "SAC on tokens",
        f"{TASK}, one environment in this process, images of {SIDE} px, {ENCODER} frozen, one frame and "
        f"proprioception, mean of the class tokens, 2 x 256, one gradient step of {BATCH} an environment step. Ours: "
        "`EmbeddedVecEnv`, tokens in the buffer. Theirs: stable-baselines3's SAC with the encoder as features "
        "extractor, images in the buffer. Peak memory: a separate process for each, all that it loads included.",
        rows=rows,
    )


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


def _ours() -> Any:
    from pixio_robot.encoders.load import load_encoder
    from pixio_robot.envs.features import task_features
    from pixio_robot.envs.registry import TaskSpec
    from pixio_robot.policies.build import PolicyDesign, build_policy
    from pixio_robot.policies.rl.embedded_env import EmbeddedVecEnv
    from pixio_robot.policies.rl.learner import LearnerOptions, actor_config, new_learner
    from pixio_robot.policies.rl.settings import AlgorithmSettings
    from pixio_robot.policies.rl.task_vec_env import TaskVecEnv
    from pixio_robot.policies.settings import ObservationSettings

    settings = AlgorithmSettings(batch=BATCH, buffer=CAPACITY, warmup=WARMUP, normalise=False)
    design = PolicyDesign(ENCODER, actor_config(settings), ObservationSettings(steps=1))
    task = TaskSpec(TASK, image_size=SIDE, render="fast")
    model = build_policy(design, task_features(task), ("rgb",), load_encoder(ENCODER), seed=0)
    venv = EmbeddedVecEnv(TaskVecEnv(task, 1, 0, processes=False), model)
    return new_learner(settings, venv, model, LearnerOptions(normalise=False))


def _theirs() -> Any:
    import torch
    from stable_baselines3 import SAC
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from torch import Tensor

    from pixio_robot.encoders.load import load_encoder
    from pixio_robot.envs.registry import make

    class Encoder(BaseFeaturesExtractor):
        """The frozen encoder, called where stable-baselines3 calls extractors."""

        def __init__(self, space: Any) -> None:
            backbone = load_encoder(ENCODER)
            super().__init__(space, backbone.token_shape.dim + 3)
            self.backbone = backbone

        def forward(self, observations: dict[str, Tensor]) -> Tensor:
            images = (observations["rgb"] * 255).to(torch.uint8).permute(0, 2, 3, 1)
            with torch.no_grad():
                tokens = self.backbone(self.backbone.preprocess(images))
            return torch.cat([tokens.cls.mean(1), observations["proprio"]], dim=1)

    return SAC(
        "MultiInputPolicy",
        make(TASK, image_size=SIDE, render="fast"),
        buffer_size=CAPACITY,
        learning_starts=WARMUP,
        batch_size=BATCH,
        policy_kwargs=dict(features_extractor_class=Encoder),
        seed=0,
        device="cpu",
    )


def _in_child(name: str) -> dict[str, float]:
    """Return what a process holds that builds one side, learns a little and fills its buffer."""
    call = [sys.executable, __file__, "--hold", name]
    lines = subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()
    return json.loads(lines[-1])


def _hold(name: str) -> dict[str, float]:
    from pixio_robot.memory import PeakMemory

    with PeakMemory() as memory:
        model = _ours() if name == "ours" else _theirs()
        model.learn(WARMUP + 3, log_interval=None)
        buffer = model.replay_buffer
        parts = [*buffer.observations.values(), *buffer.next_observations.values()]
        for part in parts:
            part[:] = np.ones(1, part.dtype)  # pages that were never written do not count
        size = sum(part.nbytes for part in [*parts, buffer.actions, buffer.rewards, buffer.dones, buffer.timeouts])
        weights = sum(each.numel() * each.element_size() for each in model.policy.parameters())
        time.sleep(1.0)  # memory is sampled twice a second
        model.env.close()
    return {"buffer": size, "peak": memory.megabytes, "weights": weights}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--hold", choices=("ours", "theirs"))
    if side := parser.parse_args().hold:
        print(json.dumps(_hold(side)))
    else:
        print(markdown(measure()))
