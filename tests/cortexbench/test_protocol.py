"""CortexBench's protocol, as released, and its budgets."""

import pytest

from pixio_robot.cortexbench.protocol import (
    BUDGETS,
    HAS_PROPRIO,
    TASKS,
    end_to_end,
    protocol_of,
    scaled_to,
    score_scale,
)
from pixio_robot.cortexbench.run import RunSpec
from pixio_robot.datasets.dataset import Feature
from pixio_robot.encoders.load import load_encoder
from pixio_robot.envs import registry
from pixio_robot.policies.build import build_policy
from pixio_robot.policies.mlp import MlpPolicy


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_epochs_are_the_released_ones(task: str) -> None:
    protocol = protocol_of(task)
    every, epochs = (25, 1000) if task == "trifinger/move_cube" else (5, 100)
    counted_from_zero = [epoch - 1 for epoch in protocol.eval_epochs]
    assert counted_from_zero == [*range(every, epochs, every), epochs - 1]
    assert protocol.training.epochs == epochs and len(counted_from_zero) == (40 if every == 25 else 20)
    assert protocol.episodes == (10 if task.startswith("dmc/") else 25)
    assert protocol.demos == (25 if task.startswith("metaworld/") else 100)


@pytest.mark.parametrize(
    ("task", "proprio", "mean", "concat"),
    [
        ("adroit/pen", 24, 3 * 192 + 24, 3 * 8 * 192 + 24),
        ("metaworld/hammer", 4, 3 * 192 + 4, 3 * 8 * 192 + 4),
        ("dmc/walker_walk", 0, 3 * 192, 3 * 8 * 192),
        ("trifinger/reach_cube", 9, 192 + 9, 8 * 192 + 9),
        ("trifinger/move_cube", 9, 2 * 192 + 9, 2 * 8 * 192 + 9),
    ],
)
def test_embedding_and_network_are_the_released_ones(task: str, proprio: int, mean: int, concat: int) -> None:
    backbone = load_encoder("random:ti:0")
    for fusion, width in (("mean", mean), ("concat", concat)):
        spec = RunSpec(task, "random:ti:0", fusion, 100, "full", "both", "fp32")
        protocol = spec.learning
        images = ("rgb", "rgb_goal")[: max(1, len(protocol.cameras))]
        features = {"action": Feature("vector", (3,), "float32")}
        features |= {image: Feature("image", (256, 256, 3), "uint8") for image in images}
        if proprio:
            features["proprio"] = Feature("vector", (proprio,), "float32")
        model = build_policy(spec.design("fp32"), features, images, backbone, 0)
        assert isinstance(model.policy, MlpPolicy) and model.policy.neck.dim == width
    config, training, steps = protocol.policy, protocol.training, model.spec.observation_steps
    found = (config.layers, config.batch_norm, training.optimizer, training.lr, training.batch, steps)
    if task.startswith("trifinger"):
        assert found == ([2000, 2000], False, "adamw", 1e-4, 32, 1)
    else:
        assert found == ([256, 256, 256], True, "adam", 1e-3, 256, 3) and config.output_init_scale == 0.01
    assert config.loss == "mse" and training.weight_decay == 0 and config.dropout == 0


def test_full_is_the_protocol_and_smaller_budgets_are_shares_of_it() -> None:
    for task in TASKS:
        suite, whole = task.split("/")[0], protocol_of(task)
        assert scaled_to(BUDGETS["full"], whole, suite) == whole
        for name in ("smoke", "small"):
            part = scaled_to(BUDGETS[name], whole, suite)
            assert part.eval_epochs[-1] == part.training.epochs < whole.training.epochs
            assert len(part.eval_epochs) == len(set(part.eval_epochs)) <= (BUDGETS[name].evaluations or 0)
            assert part.demos <= whole.demos and part.episodes <= whole.episodes
        assert scaled_to(BUDGETS["full"], whole, suite, final_only=True).eval_epochs == (whole.training.epochs,)


def test_the_cnn_gets_about_as_many_optimiser_steps() -> None:
    for task in TASKS:
        whole, cnn = protocol_of(task), end_to_end(protocol_of(task))
        steps = [each.training.epochs * 10_000 / each.training.batch for each in (whole, cnn)]
        assert steps[1] == pytest.approx(steps[0], rel=0.05) and cnn.training.batch <= 64
        assert cnn.eval_epochs[-1] == cnn.training.epochs


def test_only_suites_with_proprioception_have_a_proprioception_only_row() -> None:
    for task in TASKS:
        if task in registry.installed():
            assert bool(registry.new_task(task).proprio_dim) == (task.split("/")[0] in HAS_PROPRIO)


def test_scores_of_short_control_suite_episodes_stay_out_of_a_hundred() -> None:
    assert score_scale("dmc", 500, 200) * 40 == 100
    assert score_scale("metaworld", 500, 200) == 1
