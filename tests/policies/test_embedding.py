"""Laws of the embedding: widths known up front, FLARE's start, fusions, blindness.

Shapes: B batch, T frames, K class tokens, N patches, D width, P proprioception.
"""

import itertools
import json

import numpy as np
import pytest
import torch
from pixio_robot.policies.embedding import (
    FRAMES,
    FUSIONS,
    Embedder,
    EmbeddingSettings,
    FrameHistory,
    frame_indices,
    fuse_frames,
)
from torch import Tensor

from pixio_robot.encoders.pixio import PixioEncoder, TokenShape
from pixio_robot.errors import BadInput, UnknownName

SHAPE = TokenShape(cls=8, grid=(14, 16), dim=12)


def tokens_for(embedder: Embedder, batch: int = 2, seed: int = 0) -> Tensor:
    count = SHAPE.grid[0] * SHAPE.grid[1] if embedder.needs_patches else SHAPE.cls
    return torch.randn(batch, embedder.history, count, SHAPE.dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("fusion", "frames"), list(itertools.product(FUSIONS, FRAMES)))
@pytest.mark.parametrize("proprio", [True, False])
def test_the_width_is_known_before_anything_runs(fusion: str, frames: str, proprio: bool) -> None:
    embedder = Embedder(SHAPE, EmbeddingSettings(fusion, frames=frames, proprio=proprio), proprio_dim=5)
    frame_count = 1 if frames == "single" else 3
    per_frame = {"concat": 8 * 12, "spatial": 256}.get(fusion, 12)
    expected = per_frame * (1 if fusion == "spatial" else frame_count) + (5 if proprio else 0)
    assert embedder.dim == expected
    assert embedder(tokens_for(embedder), torch.randn(2, 5) if proprio else None).shape == (2, expected)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_embedder_is_rebuilt_from_its_arguments(fusion: str) -> None:
    embedder = Embedder(SHAPE, EmbeddingSettings(fusion), proprio_dim=3)
    twin = Embedder.from_arguments(json.loads(json.dumps(embedder.arguments())))
    twin.load_state_dict(embedder.state_dict())
    tokens, proprio = tokens_for(embedder), torch.randn(2, 3)
    assert torch.equal(twin(tokens, proprio), embedder(tokens, proprio))


def test_flare_is_differences_then_the_newest() -> None:
    e0, e1, e2 = torch.randn(3, 4, 6).unbind(0)
    expected = torch.cat([e1 - e0, e2 - e1, e2], dim=-1)
    assert torch.equal(fuse_frames(torch.stack([e0, e1, e2], dim=1), "flare"), expected)


def test_flare_of_an_episode_start_has_no_motion() -> None:
    embedder = Embedder(SHAPE, EmbeddingSettings("mean", frames="flare", proprio=False), proprio_dim=0)
    first = torch.randn(2, SHAPE.cls, SHAPE.dim)
    embedding = embedder(FrameHistory(3).push(first, starting=[True, True]), None)
    assert torch.equal(embedding[:, :24], torch.zeros(2, 24))
    torch.testing.assert_close(embedding[:, 24:], first.mean(1))


def test_recorded_and_running_histories_agree() -> None:
    lengths, history = [4, 1, 6], 3
    frames = torch.arange(sum(lengths)).float().unsqueeze(1)
    starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    recorded = frames[torch.from_numpy(frame_indices(starts, history))]
    running = FrameHistory(history)
    for row, frame in enumerate(frames):
        stacked = running.push(frame[None], starting=[bool(row == starts[row])])
        assert torch.equal(stacked[0], recorded[row])


def test_episodes_side_by_side_start_on_their_own() -> None:
    running = FrameHistory(3)
    for step in range(5):
        stacked = running.push(torch.tensor([[float(step)], [10.0 + step]]), starting=[step == 0, step in (0, 3)])
    assert stacked[:, :, 0].tolist() == [[2.0, 3.0, 4.0], [13.0, 13.0, 14.0]]


def test_a_pushed_history_does_not_change_the_ones_given_out_before() -> None:
    running = FrameHistory(2)
    before = running.push(torch.zeros(1, 1), starting=[True])
    copy = before.clone()
    running.push(torch.ones(1, 1), starting=[False])
    assert torch.equal(before, copy)


def test_mean_of_one_token_is_the_first() -> None:
    shape = TokenShape(cls=1, grid=(14, 14), dim=12)
    tokens = torch.randn(2, 3, 1, 12)
    mean, first = (Embedder(shape, EmbeddingSettings(fusion, proprio=False), 0) for fusion in ("mean", "first"))
    assert torch.equal(mean(tokens, None), first(tokens, None))


def test_the_order_of_class_tokens_matters_to_concat_and_not_to_mean() -> None:
    tokens = torch.randn(2, 3, SHAPE.cls, SHAPE.dim)
    flipped = tokens.flip(2)
    for fusion, same in (("mean", True), ("concat", False), ("first", False)):
        embedder = Embedder(SHAPE, EmbeddingSettings(fusion, proprio=False), 0)
        assert torch.allclose(embedder(tokens, None), embedder(flipped, None), atol=1e-6) is same


def test_a_blind_embedder_passes_proprioception_on() -> None:
    embedder = Embedder(None, EmbeddingSettings(), proprio_dim=7)
    proprio = torch.randn(2, 7)
    assert embedder.dim == 7 and not embedder.trainable
    assert torch.equal(embedder(None, proprio), proprio)


@pytest.mark.parametrize(("proprio", "proprio_dim"), [(False, 7), (True, 0)])
def test_seeing_nothing_is_refused(proprio: bool, proprio_dim: int) -> None:
    with pytest.raises(BadInput, match="sees nothing"):
        Embedder(None, EmbeddingSettings(proprio=proprio), proprio_dim)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_weight_of_a_learned_fusion_gets_a_gradient(fusion: str) -> None:
    embedder = Embedder(SHAPE, EmbeddingSettings(fusion), proprio_dim=2)
    assert embedder.trainable is (fusion in ("attention", "spatial"))
    assert bool(list(embedder.parameters())) is embedder.trainable
    if embedder.trainable:
        (embedder(tokens_for(embedder), torch.zeros(2, 2)) ** 2).sum().backward()
        for name, parameter in embedder.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_raw_or_normed_is_a_property_of_the_tokens() -> None:
    encoder = PixioEncoder(dim=12, depth=1, heads=2).eval()
    with torch.no_grad():
        encoder.norm.bias.fill_(1.0)
        raw, normed = (encoder(torch.randn(2, 3, 32, 32), normed=normed).cls for normed in (False, True))
    embedders = [Embedder(SHAPE, EmbeddingSettings(normed=n, frames="single", proprio=False), 0) for n in (False, True)]
    for tokens in (raw, normed):
        ours, theirs = (embedder(tokens.unsqueeze(1), None) for embedder in embedders)
        assert torch.equal(ours, theirs)  # the setting says which tokens to ask for; fusing them is the same


def test_tokens_of_half_precision_are_fused_in_the_embedders_own() -> None:
    embedder = Embedder(SHAPE, EmbeddingSettings(proprio=False), 0)
    assert embedder(torch.randn(2, 3, 8, 12).half(), None).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (EmbeddingSettings(fusion="meen"), "did you mean 'mean'"),
        (EmbeddingSettings(frames="flair"), "single, stack, flare"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(settings: EmbeddingSettings, message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        Embedder(SHAPE, settings, 0)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(BadInput, match="at least 1"):
        Embedder(SHAPE, EmbeddingSettings(history=0), 0)
    with pytest.raises(BadInput, match="14x14"):
        Embedder(TokenShape(8, (7, 7), 12), EmbeddingSettings("spatial"), 0)
