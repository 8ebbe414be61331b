"""Evaluation: a fixed list of episodes, one row each, resumed, reproduced, and never on starts that were trained on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pixio_robot.policies.bc import train_bc
from pixio_robot.policies.runs import check_held_out, evaluate_policy
from pixio_robot.policies.visuomotor import EncoderIdentity, LoadedPolicy, load_policy

from pixio_robot.datasets.robomimic import DemoSet
from pixio_robot.datasets.token_cache import TokenCache
from pixio_robot.encoders.load import Backbone
from pixio_robot.encoders.pixio import TokenShape
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.envs.rollout import plan_episodes
from pixio_robot.errors import DataError
from pixio_robot.metrics import EpisodeRecord, append_episode, paired_test, read_episodes, success_rate
from pixio_robot.policies.agent import Agent
from pixio_robot.policies.evaluate import Label, evaluate, evaluate_expert
from pixio_robot.policies.settings import EmbeddingSettings, PolicySettings
from pixio_robot.video import read_video

CPU = torch.device("cpu")


@pytest.fixture
def trained(toy_demos: DemoSet, toy_cache: TokenCache, tiny: Backbone, tmp_path: Path) -> LoadedPolicy:
    result = train_bc(
        toy_demos,
        toy_cache,
        EncoderIdentity.of(tiny, "fp32"),
        tiny.token_shape,
        embedding=EmbeddingSettings(),
        settings=PolicySettings(layers=[32], batch=32, epochs=2),
        seed=0,
        device=CPU,
        out=tmp_path / "training",
    )
    return load_policy(result.last)


def test_rows_videos_and_resumption(
    trained: LoadedPolicy, tiny: Backbone, toy_request: TaskSpec, tmp_path: Path
) -> None:
    plans = plan_episodes(toy_request, 3, first_seed=10_000)

    def run(out: str, width: int) -> list[EpisodeRecord]:
        return evaluate_policy(trained, tiny, toy_request, plans, CPU, tmp_path / out, width, videos=True).rows

    rows = run("a", width=2)
    assert [(row.index, row.seed, row.start) for row in rows] == [
        (plan.index, plan.seed, plan.initial_state_hash) for plan in plans
    ]
    first = rows[0]
    assert (first.task, first.policy, first.fusion, first.render) == ("toy/reach", "bc", "mean", "fast")
    assert first.encoder == tiny.name and first.weights == tiny.weights and first.length == 25
    videos = [row for row in rows if row.video]
    assert [row.index for row in videos] == sorted(
        {[row.success_last for row in rows].index(row.success_last) for row in rows}
    )
    assert read_video(tmp_path / "a" / first.video).shape == (25, 256, 256, 3)
    assert sorted(path.name for path in (tmp_path / "a/videos").iterdir()) == [Path(row.video).name for row in videos]

    lines = (tmp_path / "a/episodes.jsonl").read_text().splitlines()
    (tmp_path / "b").mkdir()
    (tmp_path / "b/episodes.jsonl").write_text(lines[1] + "\n" + lines[0][:40])  # cut short while writing
    again = run("b", width=1)
    outcomes = [
        [(row.index, row.success_count, round(row.episode_return, 3)) for row in each] for each in (rows, again)
    ]
    assert outcomes[0] == outcomes[1]
    assert len(read_episodes(tmp_path / "b/episodes.jsonl")) == 3


def test_rows_of_another_list_are_refused(toy_request: TaskSpec, tmp_path: Path) -> None:
    blind = replace(toy_request, observe=("proprio",))
    plans = plan_episodes(blind, 2, first_seed=0)
    evaluate_expert(blind, plans, tmp_path, workers=1)
    with pytest.raises(DataError, match="another list"):
        evaluate_expert(blind, plan_episodes(blind, 2, first_seed=5), tmp_path, workers=1)


def test_the_expert_s_row_is_the_upper_bound(toy_request: TaskSpec, tmp_path: Path) -> None:
    plans = plan_episodes(toy_request, 3, first_seed=50)
    evaluation = evaluate_expert(toy_request, plans, tmp_path, workers=2)
    summary = evaluation.summary()
    assert summary["last"]["rate"] == 1.0 and summary["any"]["successes"] == 3
    assert evaluate_expert(toy_request, plans, tmp_path, workers=2).reused == 3


def test_last_any_and_count_are_three_different_things(toy_request: TaskSpec, tmp_path: Path) -> None:
    """A policy that passes through the goal and leaves it succeeds at some step, not at the last."""
    request = replace(toy_request, observe=("proprio",))
    env = request.make()
    plan = plan_episodes(request, 1, first_seed=3)
    env.reset(seed=3)
    goal = env.task.data.mocap_pos[0].copy()
    steps = 0

    def pass_through(observations: dict[str, np.ndarray], *_: np.ndarray) -> np.ndarray:
        nonlocal steps
        steps += 1
        towards = (goal - observations["proprio"]) / 0.02
        return np.clip(towards if steps < 18 else np.ones((1, 3)), -1, 1).astype(np.float32)

    row = evaluate(pass_through, request, plan, Label("test"), tmp_path, width=1).rows[0]
    assert row.success_any and not row.success_last and 0 < row.success_count < 25


def test_starts_that_were_trained_on_are_refused(toy_demos: DemoSet, toy_request: TaskSpec) -> None:
    check_held_out(toy_demos.starts, plan_episodes(toy_request, 3, first_seed=10_000))
    with pytest.raises(DataError, match=r"seeds \[3, 4\]"):
        check_held_out(toy_demos.starts, plan_episodes(toy_request, 5, first_seed=3))


def test_an_agent_sees_live_what_it_was_trained_on(
    trained: LoadedPolicy, tiny: Backbone, toy_demos: DemoSet, toy_cache: TokenCache
) -> None:
    """Actions from recorded images, step by step, equal actions from the cache with the dataset's history."""
    from pixio_robot.policies.embedding import frame_indices

    agent = Agent(trained, tiny, CPU)
    images = np.concatenate(list(toy_demos.batches("rgb", 25, 25)))[:25]
    proprio = toy_demos.read("proprio")[25:50]
    running = np.array([True, False])  # a second environment that only waits changes nothing
    live = []
    for step in range(8):
        observations = {"rgb": np.stack([images[step]] * 2), "proprio": np.stack([proprio[step]] * 2)}
        live.append(agent.act(observations, np.array([step == 0] * 2), running)[0])
    history = frame_indices(toy_demos.frame_starts, 3)[25:33]
    with torch.inference_mode():
        cached = trained.policy(torch.from_numpy(toy_cache.cls[history]), torch.from_numpy(proprio[:8])).clamp(-1, 1)
    assert np.abs(np.stack(live) - cached.numpy()).max() < 2e-3


def test_a_batch_of_environments_is_encoded_in_one_call(trained: LoadedPolicy, tiny: Backbone) -> None:
    sizes: list[int] = []
    tiny.register_forward_hook(lambda module, arguments, output: sizes.append(len(arguments[0])))
    observations = {"rgb": np.zeros((5, 256, 256, 3), np.uint8), "proprio": np.zeros((5, 3), np.float32)}
    agent = Agent(trained, tiny, CPU)
    agent.act(observations, np.ones(5, bool), np.ones(5, bool))
    agent.act(observations, np.zeros(5, bool), np.array([True, False, True, False, False]))
    assert sizes == [5, 2] and isinstance(tiny.token_shape, TokenShape)


def test_the_interval_is_wilson_s() -> None:
    """Against the closed form of Wilson 1927."""
    successes, trials, z = 7, 25, 1.959963984540054
    rate = success_rate([True] * successes + [False] * (trials - successes))
    p = successes / trials
    centre = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * (p * (1 - p) / trials + z**2 / (4 * trials**2)) ** 0.5
    assert (rate.low, rate.high) == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert success_rate([False] * 10).low == pytest.approx(0, abs=1e-12)


def _rows(outcomes: list[bool], policy: str) -> list[EpisodeRecord]:
    return [
        EpisodeRecord(
            "t", policy, "e", "random", "mean", "fast", i, i, f"start{i}", 0.0, outcome, outcome, 1, 0.0, 25, 0.1
        )
        for i, outcome in enumerate(outcomes)
    ]


def test_the_paired_test_is_mcnemar_s() -> None:
    """24 against 17 of 25, every difference in favour of one: 2 / 2**7, though the intervals overlap."""
    test = paired_test(_rows([True] * 24 + [False], "a"), _rows([True] * 17 + [False] * 8, "b"), "last")
    assert test is not None and (test.only_first, test.only_second) == (7, 0)
    assert test.p == pytest.approx(2 / 2**7)
    same = paired_test(_rows([True, False], "a"), _rows([True, False], "b"), "any")
    assert same is not None and same.p == 1.0
    assert paired_test(_rows([True], "a"), [], "last") is None


def test_odd_images_can_be_filmed(tmp_path: Path, toy_request: TaskSpec) -> None:
    request = replace(toy_request, image_size=33, horizon=3)
    still = np.zeros((1, 3), np.float32)
    rows = evaluate(lambda *_: still, request, plan_episodes(request, 1, 0), Label("test"), tmp_path, width=1).rows
    assert read_video(tmp_path / rows[0].video).shape == (3, 34, 34, 3)


def test_records_survive_their_file(tmp_path: Path) -> None:
    row = EpisodeRecord("t", "bc", "e", "random", "mean", "fast", 0, 5, "abc", 1.5, True, False, 3, 0.0, 25, 0.1)
    append_episode(tmp_path / "episodes.jsonl", row)
    assert read_episodes(tmp_path / "episodes.jsonl") == [row]
    assert json.loads((tmp_path / "episodes.jsonl").read_text())["success_count"] == 3
