"""The order of images is a permutation in each epoch, and validation images are never trained on."""

import numpy as np
import pytest

from pixio_robot.errors import BadInput
from pixio_robot.pretrain.images.image_set import ImageSet
from pixio_robot.pretrain.order import Order, Split, hold_out

LAYOUTS = [(1, 1), (4, 1), (4, 3), (100, 1), (7, 100)]  # block, mix


def _epoch(order: Order, number: int) -> np.ndarray:
    return order.at(np.arange(number * order.length, (number + 1) * order.length))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 31, 32, 33, 1000])
@pytest.mark.parametrize(("block", "mix"), LAYOUTS)
def test_every_epoch_visits_everything_once(length: int, block: int, mix: int) -> None:
    order = Order(length, seed=3, block=block, mix=mix)
    for epoch in (0, 1, 10**9):
        assert np.array_equal(np.sort(_epoch(order, epoch)), np.arange(length))


@pytest.mark.parametrize(("block", "mix"), LAYOUTS)
def test_epochs_and_seeds_differ(block: int, mix: int) -> None:
    order = Order(1000, seed=0, block=block, mix=mix)
    assert not np.array_equal(_epoch(order, 0), _epoch(order, 1))
    assert not np.array_equal(_epoch(order, 0), _epoch(Order(1000, seed=1, block=block, mix=mix), 0))


@pytest.mark.parametrize(("block", "mix"), LAYOUTS)
def test_order_does_not_depend_on_the_query(block: int, mix: int) -> None:
    order = Order(97, seed=5, block=block, mix=mix)
    whole = order.at(np.arange(300))
    assert np.array_equal(np.concatenate([order.at(np.arange(300)[i : i + 7]) for i in range(0, 300, 7)]), whole)
    shuffled = np.random.default_rng(0).permutation(300)
    assert np.array_equal(order.at(shuffled), whole[shuffled])


@pytest.mark.parametrize("mix", [1, 3])
def test_blocks_stay_together_and_the_rest_comes_last(mix: int) -> None:
    order, window = Order(107, seed=1, block=10, mix=mix), 10 * mix
    for epoch in range(3):
        visited = _epoch(order, epoch)
        windows = [visited[i : min(i + window, 100)] // 10 for i in range(0, 100, window)]
        assert all(len(set(each.tolist())) == len(each) // 10 for each in windows)
        assert set(visited[100:].tolist()) == set(range(100, 107))
        assert len({each[0] for each in windows}) == len(windows)
        assert not np.array_equal(visited[:10], np.sort(visited[:10]))


def test_large_sets_need_no_memory() -> None:
    order = Order(2**40, seed=0)
    positions = np.arange(2**41, 2**41 + 1000)
    images = order.at(positions)
    assert len(set(images.tolist())) == 1000 and images.min() >= 0 and images.max() < 2**40
    assert 0.45 < images.mean() / 2**40 < 0.55


def test_places_are_evenly_distributed() -> None:
    order = Order(50, seed=9)
    first = order.at(50 * np.arange(5000))
    counts = np.bincount(first, minlength=50)
    assert ((counts - 100) ** 2 / 100).sum() < 100  # chi-squared of 49 degrees: 85 is one in a thousand
    pairs = np.diff(order.at(np.arange(50 * 200)).reshape(200, 50))
    assert abs((pairs == 1).mean() - 1 / 50) < 0.01  # neighbours follow each other as often as by chance
    following = np.corrcoef(*np.stack([_epoch(order, 1), _epoch(order, 2)]))[0, 1]
    assert abs(following) < 0.5


def test_all_orders_of_three_occur() -> None:
    order = Order(3, seed=0)
    seen = [tuple(each) for each in order.at(np.arange(9000)).reshape(3000, 3).tolist()]
    assert len(set(seen)) == 6 and min(seen.count(each) for each in set(seen)) > 350


@pytest.mark.parametrize("arguments", [(0, 0), (5, 0, 0), (5, 0, 1, 0), (2**41, 0)])
def test_impossible_orders_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="order"):
        Order(*arguments)


class _Blank(ImageSet):
    def __init__(self, lengths: list[int] | None, length: int = 0) -> None:
        self._length = sum(lengths) if lengths else length
        self.groups = np.concatenate([[0], np.cumsum(lengths)]) if lengths else None
        self.fingerprint = ""

    def __len__(self) -> int:
        return self._length

    def read(self, index: int) -> bytes:
        return b""

    def name(self, index: int) -> str:
        return str(index)


def _check(split: Split) -> None:
    trained = split.index(np.arange(split.training))
    assert len(set(trained.tolist())) == split.training == split.length - len(split.val_images)
    assert not set(trained.tolist()) & set(split.val_images.tolist())
    assert np.isin(split.evaluated, split.val_images).all() and (np.diff(split.evaluated) > 0).all()


@pytest.mark.parametrize("val_images", [[], [0], [9], [0, 1, 2], [3, 4, 9], list(range(9))])
def test_training_indices_skip_validation_images(val_images: list[int]) -> None:
    chosen = np.array(val_images, np.int64)
    split = Split(10, chosen, chosen)
    _check(split)
    expected = [number for number in range(10) if number not in val_images]
    assert split.index(np.arange(split.training)).tolist() == expected


def test_validation_images_are_random_for_still_images() -> None:
    split = hold_out(_Blank(None, 100), 20, seed=0)
    _check(split)
    assert len(split.evaluated) == 20 and not np.array_equal(split.evaluated, np.arange(20))
    assert np.array_equal(split.evaluated, hold_out(_Blank(None, 100), 20, seed=0).evaluated)
    assert not np.array_equal(split.evaluated, hold_out(_Blank(None, 100), 20, seed=1).evaluated)


def test_validation_sequences_are_whole() -> None:
    images = _Blank([10] * 12)
    split = hold_out(images, 25, seed=0)
    _check(split)
    assert len(split.val_images) == 30 and len(split.evaluated) == 25
    assert len(set((split.val_images // 10).tolist())) == 3
    most = hold_out(images, 60, seed=0)
    _check(most)
    assert len(most.val_images) == 60
    uneven = hold_out(_Blank([100, 3, 3, 3]), 40, seed=0)  # the long one may not leave training
    _check(uneven)
    assert len(uneven.val_images) == 6 and 0 not in uneven.val_images


def test_validation_of_one_sequence_is_its_end() -> None:
    split = hold_out(_Blank([50]), 10, seed=0)
    _check(split)
    assert split.val_images.tolist() == list(range(40, 50))


def test_at_most_half_is_for_validation() -> None:
    assert hold_out(_Blank(None, 10), 0, seed=0).training == 10
    with pytest.raises(BadInput, match="at most half, 5"):
        hold_out(_Blank(None, 10), 6, seed=0)
