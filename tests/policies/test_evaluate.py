"""Evaluation: a fixed list of episodes, one row each, resumed, reproduced, never on initial states of training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pixio_robot.datasets.dataset import EpisodeDataset
from pixio_robot.encoders.load import Backbone
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.envs.rollout import plan_episodes
from pixio_robot.errors import DataError
from pixio_robot.metrics import EpisodeRecord, append_episode, paired_test, read_episodes, success_rate
from pixio_robot.policies.evaluate import (
    Label,
    RolloutSettings,
    check_no_overlap,
    evaluate,
    evaluate_expert,
    evaluate_policy,
    policy_task,
    task_of,
)
from pixio_robot.policies.loaded import LoadedPolicy, load_policy
from pixio_robot.video import read_video

CPU = torch.device("cpu")


@pytest.fixture
def trained(clone: Any) -> LoadedPolicy:
    return load_policy(clone("training").last)


def test_rows_videos_and_resumption(
    trained: LoadedPolicy, tiny: Backbone, toy_request: TaskSpec, tmp_path: Path
) -> None:
    plans = plan_episodes(toy_request, 3, first_seed=10_000)

    def run(out: str, width: int) -> list[EpisodeRecord]:
        rollout = RolloutSettings(width, videos=True)
        return evaluate_policy(trained, toy_request, plans, CPU, tmp_path / out, rollout).rows

    rows = run("a", width=2)
    assert [(row.index, row.seed, row.start) for row in rows] == [
        (plan.index, plan.seed, plan.initial_state_hash) for plan in plans
    ]
    first = rows[0]
    assert (first.task, first.policy, first.fusion, first.render) == ("toy/reach", "mlp", "mean", "fast")
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
    plain = replace(toy_request, observe=("proprio",))
    plans = plan_episodes(plain, 2, first_seed=0)
    evaluate_expert(plain, plans, tmp_path, workers=1)
    with pytest.raises(DataError, match="another list"):
        evaluate_expert(plain, plan_episodes(plain, 2, first_seed=5), tmp_path, workers=1)


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


def test_initial_states_that_were_trained_on_are_refused(toy_demos: EpisodeDataset, toy_request: TaskSpec) -> None:
    check_no_overlap(toy_demos.initial_states, plan_episodes(toy_request, 3, first_seed=10_000))
    with pytest.raises(DataError, match=r"seeds \[3, 4\]"):
        check_no_overlap(toy_demos.initial_states, plan_episodes(toy_request, 5, first_seed=3))


def test_seeds_of_reinforcement_learning_are_refused(toy_request: TaskSpec) -> None:
    check_no_overlap([], plan_episodes(toy_request, 3, first_seed=10_000), seeds=(0, 10_000))
    with pytest.raises(DataError, match=r"seeds \[10001, 10002\] have initial states of training episodes"):
        check_no_overlap([], plan_episodes(toy_request, 3, first_seed=10_000), seeds=(10_001, 20_000))


def test_the_environment_is_the_one_that_recorded(
    trained: LoadedPolicy, toy_demos: EpisodeDataset, toy_request: TaskSpec
) -> None:
    assert task_of(toy_demos.provenance, "demos") == toy_request
    assert task_of(trained.provenance, "policy") == toy_request
    assert policy_task(trained, toy_request).observe == ("rgb", "proprio"), "nothing that it does not observe"


def test_nothing_is_rendered_for_a_policy_without_images(clone: Any, toy_request: TaskSpec, tmp_path: Path) -> None:
    loaded = load_policy(clone("state", encoder="state").last)
    assert policy_task(loaded, toy_request).observe == ("state",)
    plans = plan_episodes(toy_request, 2, first_seed=10_000)
    rows = evaluate_policy(loaded, toy_request, plans, CPU, tmp_path / "a", RolloutSettings(1, videos=True)).rows
    assert [(row.policy, row.encoder, row.render, row.video) for row in rows] == [("state", "none", "none", "")] * 2


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        ({}, "was not recorded by pixio-robot"),
        ({"task": "Lift", "environment": {"robots": "Panda"}}, "was not recorded by pixio-robot"),
        ({"task": "toy/reech", "environment": {"task": "toy/reech"}}, "toy/reech, which cannot be simulated here"),
    ],
)
def test_data_whose_environment_is_not_known_asks_for_a_task(provenance: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"{message}.*task=SUITE/TASK"):
        task_of(provenance, "demos.hdf5")


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
    row = EpisodeRecord("t", "mlp", "e", "random", "mean", "fast", 0, 5, "abc", 1.5, True, False, 3, 0.0, 25, 0.1)
    append_episode(tmp_path / "episodes.jsonl", row)
    assert read_episodes(tmp_path / "episodes.jsonl") == [row]
    assert json.loads((tmp_path / "episodes.jsonl").read_text())["success_count"] == 3
