"""Batched evaluation against one environment whose images are encoded one at a time.

Worker processes import this file again: nothing heavy above the functions.
"""

import logging
from collections.abc import Callable
from time import perf_counter

import numpy as np
from timing import Section, cells, compare, in_turns, markdown, per_second, seconds

NEEDS = {"metaworld": "metaworld"}  # package: extra of pixio-robot
TASK, RENDER, ENCODER = "metaworld/drawer-open", "fast", "random:ti:0"
HORIZON, EPISODES, PAIRS = 25, 8, 5


def measure() -> Section:
    """Run the same episodes with the same policy both ways, in turns."""
    import torch

    from pixio_robot.encoders.load import load_encoder
    from pixio_robot.envs.registry import TaskSpec
    from pixio_robot.envs.rollout import BatchRollout, default_width, plan_episodes
    from pixio_robot.policies.agent import Agent
    from pixio_robot.policies.embedding import Embedder
    from pixio_robot.policies.settings import EmbeddingSettings, PolicySettings
    from pixio_robot.policies.visuomotor import EncoderIdentity, LoadedPolicy, Visuomotor

    logging.getLogger("pixio_robot").setLevel(logging.ERROR)  # random weights are what we want here
    request = TaskSpec(TASK, render=RENDER, horizon=HORIZON)
    plans = plan_episodes(request, EPISODES, first_seed=10_000)
    began = perf_counter()
    env = request.make()
    starting_one = perf_counter() - began

    backbone = load_encoder(ENCODER)
    embedder = Embedder(backbone.token_shape, EmbeddingSettings(), env.task.proprio_dim)
    policy = Visuomotor(embedder, env.task.action_dim, PolicySettings())
    loaded = LoadedPolicy(policy, EncoderIdentity.of(backbone, "fp32"), request, {}, 0)
    one, many = (Agent(loaded, backbone, torch.device("cpu")) for _ in range(2))  # a history each
    cores = default_width()
    steps = EPISODES * HORIZON
    clocks = {"ours": Clock(), "theirs": Clock()}

    def alone() -> None:
        for plan in plans:
            observation, _ = env.reset(seed=plan.seed)
            starting, ended = True, False
            while not ended:
                batch = {key: value[None] for key, value in observation.items()}
                observation, _, _, ended, _ = env.step(one.act(batch, np.array([starting]), np.array([True]))[0])
                starting = False

    began = perf_counter()
    with BatchRollout(request, plans, width=2 * cores) as rollout:
        starting_many = perf_counter() - began
        width = rollout.width
        times = in_turns(
            lambda: clocks["ours"].time(lambda: list(rollout.run(many.act))) / steps,
            lambda: clocks["theirs"].time(alone) / steps,
            PAIRS,
        )
    env.close()
    how = (
        f"The same {EPISODES} episodes of {TASK}, {HORIZON} steps each, images of quality {RENDER!r} at 256x256, "
        f"encoder {ENCODER}, an untrained policy. Ours: `BatchRollout`, {width} environments in worker processes that "
        "draw with one thread each, one encoder call for all of them. Theirs: one environment in the process, a plain "
        "loop that encodes one image a step; drawing and encoder use all cores. Environment steps a second, "
        f"start-up left out: it takes {starting_many:.1f} s for the workers, {starting_one:.1f} s for one environment."
    )
    total = steps * (PAIRS + 1)
    notes = [
        "Milliseconds an environment step, by what they go to. Rendering and physics of workers that "
        "run side by side count once, as their mean. Drawing overlaps with drawing but not with encoding, which needs "
        "the images first: the gain ends where the cores are busy or encoding fills the clock.",
        "\n".join(
            [
                _spent("one environment", {**env.seconds, **one.seconds}, clocks["theirs"], total, cores),
                _spent(f"{width} environments", {**rollout.seconds, **many.seconds}, clocks["ours"], total, cores),
            ]
        ),
    ]
    comparison = compare(f"{width} environments, {cores} cores", *times)
    return Section("Evaluation", how, rows=cells([comparison], per_second), notes=notes)


class Clock:
    """Adds up wall time and the CPU time of this process and its workers."""

    def __init__(self) -> None:
        self.wall, self.cpu = 0.0, 0.0  # [s]

    def time(self, work: Callable[[], object]) -> float:
        """Run `work`; return its wall time [s]."""
        before = _cpu_seconds()
        wall = seconds(work)
        self.wall += wall
        self.cpu += _cpu_seconds() - before
        return wall


def _cpu_seconds() -> float:
    import psutil

    this = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (this, *this.children(recursive=True)))


def _spent(who: str, spent: dict[str, float], clock: Clock, steps: int, cores: int) -> str:
    """Say where the time of `steps` environment steps went [s], largest first, and how busy the cores were."""
    largest = sorted(spent.items(), key=lambda each: -each[1])
    parts = ", ".join(f"{what} {1e3 * time / steps:.1f} ({time / sum(spent.values()):.0%})" for what, time in largest)
    return (
        f"- {who}: {parts}; {1e3 * clock.wall / steps:.1f} by the clock, {1e3 * clock.cpu / steps:.1f} of CPU time, "
        f"so {clock.cpu / (clock.wall * cores):.0%} of {cores} cores are busy"
    )


if __name__ == "__main__":
    print(markdown(measure()))
