"""Batched evaluation against one environment whose images are encoded one at a time.

Worker processes import this file too, so heavy imports stay inside functions.
"""

import logging
from collections.abc import Callable
from time import perf_counter

import numpy as np
from timing import Section, cells, compare, in_turns, markdown, per_second, seconds

NEEDS = {"metaworld": "metaworld"}  # package: extra of pixio-robot
TASK, RENDER, ENCODER = "metaworld/drawer-open", "fast", "random:ti:0"
STEPS, EPISODES, PAIRS = 25, 8, 5


def measure() -> Section:
    """Run the same episodes with the same policy both ways, in turns."""
    import torch

    from pixio_robot.datasets.dataset import Feature
    from pixio_robot.encoders.load import load_encoder
    from pixio_robot.envs.registry import TaskSpec
    from pixio_robot.envs.rollout import BatchRollout, default_width, plan_episodes
    from pixio_robot.policies.agent import Agent
    from pixio_robot.policies.build import PolicyDesign, build_policy
    from pixio_robot.policies.loaded import LoadedPolicy
    from pixio_robot.policies.mlp import MlpConfig

    logging.getLogger("pixio_robot").setLevel(logging.ERROR)  # random weights are intended here
    request = TaskSpec(TASK, render=RENDER, horizon=STEPS)
    plans = plan_episodes(request, EPISODES, first_seed=10_000)
    began = perf_counter()
    env = request.make()
    starting_one = perf_counter() - began

    backbone = load_encoder(ENCODER)
    features = {
        "rgb": Feature("image", (256, 256, 3), "uint8"),
        "proprio": Feature("vector", (env.task.proprio_dim,), "float32"),
        "action": Feature("vector", (env.task.action_dim,), "float32"),
    }
    model = build_policy(PolicyDesign(ENCODER, MlpConfig()), features, ("rgb",), backbone, seed=0)
    loaded = LoadedPolicy(model, {}, {}, 0)
    one, many = (Agent(loaded, torch.device("cpu")) for _ in range(2))  # each has its own history
    cores = default_width()
    steps = EPISODES * STEPS
    clocks = {"ours": Clock(), "theirs": Clock()}

    def alone() -> None:
        for plan in plans:
            observation, _ = env.reset(seed=plan.seed)
            first, ended = True, False
            while not ended:
                batch = {key: value[None] for key, value in observation.items()}
                observation, _, _, ended, _ = env.step(one.act(batch, np.array([first]), np.array([True]))[0])
                first = False

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
        f"The same {EPISODES} episodes of {TASK}, {STEPS} steps each, images of quality {RENDER!r} at 256x256, "
        f"encoder {ENCODER}, an untrained policy. Ours: `BatchRollout`, {width} environments in worker processes that "
        "draw with one thread each, one encoder call for all of them. Theirs: one environment in the process, a plain "
        "loop that encodes one image a step; drawing and encoder use all cores. Environment steps a second, "
        f"start-up left out: it takes {starting_many:.1f} s for the workers, {starting_one:.1f} s for one environment."
    )
    total = steps * (PAIRS + 1)
    notes = [
        "Milliseconds for each environment step, by part. Rendering and physics of workers that run at the same time "
        "count once, as their mean. Workers render at the same time, but encoding waits for the images: the gain ends "
        "where the cores are busy or encoding takes all the time.",
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
    """Return a line about the time of `steps` environment steps, by part, and how busy the cores were."""
    largest = sorted(spent.items(), key=lambda each: -each[1])
    parts = ", ".join(f"{what} {1e3 * time / steps:.1f} ({time / sum(spent.values()):.0%})" for what, time in largest)
    return (
        f"- {who}: {parts}; {1e3 * clock.wall / steps:.1f} by the clock, {1e3 * clock.cpu / steps:.1f} of CPU time, "
        f"so {clock.cpu / (clock.wall * cores):.0%} of {cores} cores are busy"
    )


if __name__ == "__main__":
    print(markdown(measure()))
