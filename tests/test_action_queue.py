"""The action queue: late actions are dropped, overlapping chunks are blended or ensembled, and steps are counted."""

import numpy as np
import pytest

from pixio_robot.action_queue import ActionQueue, check_n_action_steps
from pixio_robot.errors import BadInput


def _chunk(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def _drain(queue: ActionQueue) -> list[float]:
    return [round(float(queue.pop().action[0]), 4) for _ in range(len(queue))]


def _at(step: int, **settings: float | None) -> ActionQueue:
    queue = ActionQueue(**settings)  # type: ignore[arg-type]
    for _ in range(step):
        queue.skip()
    return queue


def test_the_first_chunk_is_returned_unchanged() -> None:
    queue = ActionQueue(blend=0.7)
    queue.put(_chunk(1, 2, 3), 0)
    assert _drain(queue) == [1, 2, 3] and queue.step == 3


def test_passed_steps_of_a_chunk_are_dropped() -> None:
    queue = _at(12)
    queue.put(_chunk(0, 1, 2, 3), 10)
    assert _drain(queue) == [2, 3] and queue.dropped == 2
    while queue.step < 99:
        queue.skip()
    queue.put(_chunk(0, 1), 10)
    assert queue.pop().action[0] == 1.0 and queue.dropped == 3 and len(queue) == 0


def test_a_late_single_action_is_used() -> None:
    queue = _at(11)
    queue.put(_chunk(5), 10)
    assert len(queue) == 1 and queue.dropped == 0 and queue.pop().action[0] == 5


def test_n_action_steps_limits_the_actions_of_a_chunk() -> None:
    queue = ActionQueue(n_action_steps=2)
    queue.put(_chunk(0, 1, 2), 0)
    assert len(queue) == queue.steps_until_due() == 2 and _drain(queue) == [0, 1]


def test_overlapping_chunks_are_blended_and_values_that_are_not_finite_ignored() -> None:
    queue = ActionQueue(blend=0.7)
    queue.put(_chunk(0, 1, 2, np.nan, 4), 0)
    assert [queue.pop().action[0] for _ in range(2)] == [0, 1]
    queue.put(_chunk(9, 12, 13, 14, 15), 1)  # observed at step 1, here at step 2
    assert _drain(queue) == pytest.approx([0.3 * 2 + 0.7 * 12, 13, 0.3 * 4 + 0.7 * 14, 15]) and queue.dropped == 1
    queue.put(_chunk(0, 1), 6)
    queue.put(_chunk(5, 6), 0)  # all its steps have passed: its last action is used, not blended
    assert queue.pop().action[0] == 6
    for weight in (0.0, 1.1, np.nan):
        with pytest.raises(BadInput, match="weight of a new chunk"):
            ActionQueue(blend=weight)


def test_a_later_chunk_is_blended_with_the_queued_one() -> None:
    queue = ActionQueue(blend=0.7, keep_late=False)
    queue.put(_chunk(0, 1, 2, 3), 0)
    queue.pop()
    queue.pop()  # observed at step 1, here at step 2
    queue.put(_chunk(100, 102, 103, 104), 1)
    assert _drain(queue) == [round(0.3 * 2 + 0.7 * 102, 4), round(0.3 * 3 + 0.7 * 103, 4), 104]


def test_a_chunk_whose_steps_have_all_passed_is_dropped_without_keep_late_and_a_weight_of_one_replaces() -> None:
    queue = ActionQueue(keep_late=False)
    queue.put(_chunk(0, 1), 0)
    _drain(queue)
    queue.put(_chunk(5, 6), 0)
    assert len(queue) == 0 and queue.dropped == 2
    queue.put(_chunk(7, 8, 9), 2)
    queue.put(_chunk(4, 5), 2)
    assert _drain(queue) == [4, 5]


def test_queues_of_several_episodes_are_refilled_when_due() -> None:
    queues = [ActionQueue(), ActionQueue()]
    assert [each.steps_until_due() for each in queues] == [0, 0]
    for queue, chunk in zip(queues, np.arange(6, dtype=np.float32).reshape(2, 3, 1), strict=True):
        queue.put(chunk, 0)
    assert [each.pop().action[0] for each in queues] == [0, 3]
    queues[1].clear()  # its next episode starts
    assert [each.steps_until_due() for each in queues] == [2, 0]
    queues[1].put(np.full((3, 1), 9, np.float32), 0)
    assert [each.pop().action[0] for each in queues] == [1, 9]


def test_a_wrong_n_action_steps_is_refused() -> None:
    assert check_n_action_steps(None, 3) == check_n_action_steps(3, 3) == 3
    for wrong in (0, 4, -1):
        with pytest.raises(BadInput, match="horizon is 3; give 1 to 3"):
            check_n_action_steps(wrong, 3)
    with pytest.raises(BadInput, match="at least 1 action"):
        ActionQueue(n_action_steps=0)


@pytest.mark.parametrize("m", [0.0, 0.01, 0.5])
def test_temporal_ensemble_is_the_weighted_mean_of_all_predictions_for_a_step(m: float) -> None:
    """The loop of ACT's own evaluation: a table of predictions, and weights exp(-m i) from the oldest on."""
    horizon, steps = 4, 12
    chunks = np.random.default_rng(0).normal(size=(steps, horizon, 3)).astype(np.float32)
    queue = ActionQueue(ensemble=m)
    table: dict[int, list[np.ndarray]] = {}
    for step in range(steps):
        for place in range(horizon):
            table.setdefault(step + place, []).append(chunks[step, place])
        weights = np.exp(-m * np.arange(len(table[step])))
        expected = (np.stack(table[step]) * (weights / weights.sum())[:, None]).sum(0)
        assert queue.steps_until_due() == 0
        queue.put(chunks[step], step, tag=step)
        action, tag = queue.pop()
        np.testing.assert_allclose(action, expected, atol=1e-6)
        assert action.dtype == np.float32 and tag == step and len(queue) == horizon - 1


def test_temporal_ensemble_ignores_values_that_are_not_finite() -> None:
    queue = ActionQueue(ensemble=0.0)
    queue.put(np.array([[1.0, 0.0], [np.nan, 2.0]]), 0)
    queue.pop()
    queue.put(np.array([[3.0, 4.0]]), 1)
    assert queue.pop().action.tolist() == [3.0, 3.0]
    queue.put(np.array([[np.nan, 1.0]]), 2)
    assert np.isnan(queue.pop().action[0])
    with pytest.raises(BadInput, match="excludes chunk_blend"):
        ActionQueue(blend=0.5, ensemble=0.01)
    with pytest.raises(BadInput, match="finite"):
        ActionQueue(ensemble=np.inf)


def test_steps_without_an_action_are_counted_and_wrong_chunks_refused() -> None:
    queue = ActionQueue()
    with pytest.raises(BadInput, match="no action is queued for step 0"):
        queue.pop()
    queue.skip()
    queue.put(_chunk(1, 2, 3), 1)
    queue.skip()
    assert queue.step == 2 and _drain(queue) == [2, 3]
    with pytest.raises(BadInput, match="chunk for step 9 at step 4"):
        queue.put(_chunk(1), 9)
    for wrong in (np.zeros(3), np.zeros((0, 3))):
        with pytest.raises(BadInput, match="shape"):
            queue.put(wrong, 0)
    queue.clear()
    assert queue.step == 0 and len(queue) == 0


def test_a_tag_comes_back_with_each_action() -> None:
    queue = ActionQueue(blend=0.5)
    queue.put(_chunk(0, 1, 2), 0, tag="first")
    assert queue.pop().tag == "first"
    queue.put(_chunk(1, 2), 1, tag="second")
    assert [queue.pop().tag for _ in range(2)] == ["second", "second"]
