"""CortexBench's protocol, as released, and what budgets leave of it."""

import pytest
from pixio_robot.policies.bc import new_policy

from pixio_robot.cortexbench import cell as cells
from pixio_robot.cortexbench.cell import RunSpec
from pixio_robot.cortexbench.protocol import BUDGETS, HAS_PROPRIO, TASKS, end_to_end, protocol_of, within
from pixio_robot.encoders.pixio import TokenShape
from pixio_robot.envs import registry


@pytest.mark.parametrize("task", TASKS)
def test_evaluations_are_the_released_ones(task: str) -> None:
    protocol = protocol_of(task)
    every, epochs = (25, 1000) if task == "trifinger/move_cube" else (5, 100)
    counted_from_zero = [moment - 1 for moment in protocol.moments]
    assert counted_from_zero == [*range(every, epochs, every), epochs - 1]
    assert protocol.policy.epochs == epochs and len(counted_from_zero) == (40 if every == 25 else 20)
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
def test_the_head_sees_and_is_what_was_released(task: str, proprio: int, mean: int, concat: int) -> None:
    for fusion, width in (("mean", mean), ("concat", concat)):
        protocol = RunSpec(task, "random:ti:0", fusion, 100, "full", "both", "fp32").learning
        widths = {"actions": 3, **({"proprio": proprio} if proprio else {})}
        images = ("rgb", "rgb_goal")[: max(1, len(protocol.cameras))]
        tokens = TokenShape(8, (16, 16), 192)
        policy = new_policy(tokens, protocol.embedding, widths, protocol.policy, 0, "bc", images)
        assert policy.embedder.dim == width
    settings = protocol.policy
    if task.startswith("trifinger"):
        found = (settings.layers, settings.batch_norm, settings.optimizer, settings.lr, settings.batch, policy.history)
        assert found == ([2000, 2000], False, "adamw", 1e-4, 32, 1)
    else:
        found = (settings.layers, settings.batch_norm, settings.optimizer, settings.lr, settings.batch, policy.history)
        assert found == ([256, 256, 256], True, "adam", 1e-3, 256, 3) and settings.output_init_scale == 0.01
    assert settings.loss == "mse" and settings.weight_decay == 0 and settings.dropout == 0


def test_full_is_the_protocol_and_smaller_budgets_are_shares_of_it() -> None:
    for task in TASKS:
        suite, whole = task.split("/")[0], protocol_of(task)
        assert within(whole, suite, BUDGETS["full"], released=True) == whole
        for name in ("smoke", "small"):
            part = within(whole, suite, BUDGETS[name], released=True)
            assert part.moments[-1] == part.policy.epochs < whole.policy.epochs
            assert len(part.moments) == len(set(part.moments)) <= (BUDGETS[name].moments or 0)
            assert part.demos <= whole.demos and part.episodes <= whole.episodes
        assert within(whole, suite, BUDGETS["full"], released=False).moments == (whole.policy.epochs,)


def test_learning_to_see_takes_about_as_many_steps() -> None:
    for task in TASKS:
        whole, seeing = protocol_of(task), end_to_end(protocol_of(task))
        steps = [each.policy.epochs * 10_000 / each.policy.batch for each in (whole, seeing)]
        assert steps[1] == pytest.approx(steps[0], rel=0.05) and seeing.policy.batch <= 64
        assert seeing.moments[-1] == seeing.policy.epochs


def test_only_suites_that_feel_have_a_blind_row() -> None:
    for task in TASKS:
        if task in registry.installed():
            assert bool(registry.new_task(task).proprio_dim) == (task.split("/")[0] in HAS_PROPRIO)


def test_cut_episodes_of_the_control_suite_stay_out_of_a_hundred() -> None:
    assert cells.score_scale("dmc", 500, 200) * 40 == 100
    assert cells.score_scale("metaworld", 500, 200) == 1
