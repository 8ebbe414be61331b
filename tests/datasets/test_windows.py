"""Windows: observations up to a frame, actions from it on, never across episodes."""

import numpy as np
import pytest

from pixio_robot.datasets.windows import Window, action_rows, observation_rows
from pixio_robot.errors import BadInput

LENGTHS = [5, 1, 7]
EPISODE = np.repeat(np.arange(3), LENGTHS)
STEP = np.concatenate([np.arange(length) for length in LENGTHS])
LENGTH = np.array(LENGTHS)[EPISODE]
STARTS = np.arange(13) - STEP


@pytest.mark.parametrize("horizon", [1, 3, 9])
def test_targets_are_the_actions_that_follow_within_the_episode(horizon: int) -> None:
    rows, is_pad = action_rows(STARTS, horizon)
    assert rows.shape == is_pad.shape == (13, horizon) and rows.dtype == np.int64 and is_pad.dtype == bool
    assert (EPISODE[rows] == EPISODE[:, None]).all()
    assert np.array_equal(~is_pad, STEP[:, None] + np.arange(horizon) < LENGTH[:, None])
    assert (STEP[rows] == np.minimum(STEP[:, None] + np.arange(horizon), LENGTH[:, None] - 1)).all()
    assert not is_pad[:, 0].any(), "the action of the frame itself is always a target"


def test_a_horizon_of_one_is_the_action_of_each_frame() -> None:
    rows, is_pad = action_rows(STARTS, 1)
    assert rows[:, 0].tolist() == list(range(13)) and not is_pad.any()


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_observations_end_with_the_frame_and_repeat_the_first_of_the_episode(steps: int) -> None:
    rows = observation_rows(STARTS, steps)
    assert rows.shape == (13, steps) and (EPISODE[rows] == EPISODE[:, None]).all()
    assert rows[:, -1].tolist() == list(range(13))
    assert (STEP[rows] == np.maximum(STEP[:, None] - np.arange(steps - 1, -1, -1), 0)).all()


@pytest.mark.parametrize(
    ("window", "message"), [((0, 1), r"observation\.steps=0"), ((1, 0), "horizon=0"), ((3, -2), "horizon=-2")]
)
def test_windows_have_at_least_one_step(window: tuple[int, int], message: str) -> None:
    with pytest.raises(BadInput, match=f"{message} must be at least 1"):
        Window(*window)
