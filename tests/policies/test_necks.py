"""Laws of the necks: widths known up front, FLARE's start, fusions, sequences that keep cameras and time apart.

Shapes: B batch, T observation steps, K class tokens, N patches, D width, P vector, L length.
"""

import itertools

import pytest
import torch
from torch import Tensor

from pixio_robot.encoders.pixio import PixioEncoder, TokenShape
from pixio_robot.errors import BadInput, UnknownName
from pixio_robot.policies.necks import FRAMES, FUSIONS, FusedVector, SequenceSpec, TokenSequence, fuse_frames

SHAPE = TokenShape(cls=8, grid=(14, 16), dim=12)


def neck(fusion: str = "mean", frames: str = "flare", steps: int = 3, vector: int = 0) -> FusedVector:
    return FusedVector(SHAPE, fusion, frames, steps, vector)


def tokens_for(neck: FusedVector, batch: int = 2, seed: int = 0) -> Tensor:
    count = SHAPE.grid[0] * SHAPE.grid[1] if neck.needs_patches else SHAPE.cls
    return torch.randn(batch, neck.steps, count, SHAPE.dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("fusion", "frames"), list(itertools.product(FUSIONS, FRAMES)))
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("vector", [5, 0])
def test_the_width_is_known_before_anything_runs(fusion: str, frames: str, steps: int, vector: int) -> None:
    fused = neck(fusion, frames, steps, vector)
    per_frame = {"concat": 8 * 12, "spatial": 256}.get(fusion, 12)
    expected = per_frame * (1 if fusion == "spatial" else steps) + vector
    assert fused.dim == expected
    assert fused(tokens_for(fused), torch.randn(2, 5) if vector else None).shape == (2, expected)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_neck_is_its_arguments_and_weights(fusion: str) -> None:
    one, twin = neck(fusion, vector=3), neck(fusion, vector=3)
    twin.load_state_dict(one.state_dict())
    tokens, proprio = tokens_for(one), torch.randn(2, 3)
    assert torch.equal(twin(tokens, proprio), one(tokens, proprio))


def test_flare_is_differences_then_the_latest() -> None:
    e0, e1, e2 = torch.randn(3, 4, 6).unbind(0)
    expected = torch.cat([e1 - e0, e2 - e1, e2], dim=-1)
    assert torch.equal(fuse_frames(torch.stack([e0, e1, e2], dim=1), "flare"), expected)


def test_a_single_step_is_fused_alike_by_both() -> None:
    frames = torch.randn(4, 1, 6)
    assert torch.equal(fuse_frames(frames, "flare"), frames[:, 0])
    assert torch.equal(fuse_frames(frames, "stack"), frames[:, 0])


def test_flare_of_an_episode_start_has_no_motion() -> None:
    first = torch.randn(2, SHAPE.cls, SHAPE.dim)
    embedding = neck()(first[:, None].expand(-1, 3, -1, -1), None)
    assert torch.equal(embedding[:, :24], torch.zeros(2, 24))
    torch.testing.assert_close(embedding[:, 24:], first.mean(1))


def test_mean_of_one_token_is_the_first() -> None:
    shape = TokenShape(cls=1, grid=(14, 14), dim=12)
    tokens = torch.randn(2, 3, 1, 12)
    mean, first = (FusedVector(shape, fusion, "flare", 3, 0) for fusion in ("mean", "first"))
    assert torch.equal(mean(tokens, None), first(tokens, None))


def test_the_order_of_class_tokens_matters_to_concat_and_not_to_mean() -> None:
    tokens = torch.randn(2, 3, SHAPE.cls, SHAPE.dim)
    flipped = tokens.flip(2)
    for fusion, same in (("mean", True), ("concat", False), ("first", False)):
        fused = neck(fusion)
        assert torch.allclose(fused(tokens, None), fused(flipped, None), atol=1e-6) is same


def test_without_images_the_vector_passes_through() -> None:
    fused = FusedVector(None, "mean", "flare", 3, 7)
    proprio = torch.randn(2, 7)
    assert fused.dim == 7 and not fused.trainable
    assert torch.equal(fused(None, proprio), proprio)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(BadInput, match="got no tokens"):
        neck(vector=2)(None, torch.zeros(2, 2))
    with pytest.raises(BadInput, match="a vector of 2 numbers, and got none"):
        neck(vector=2)(tokens_for(neck()), None)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_weight_of_a_learned_fusion_gets_a_gradient(fusion: str) -> None:
    fused = neck(fusion, vector=2)
    assert fused.trainable is (fusion in ("attention", "spatial"))
    assert bool(list(fused.parameters())) is fused.trainable
    if fused.trainable:
        (fused(tokens_for(fused), torch.zeros(2, 2)) ** 2).sum().backward()
        for name, parameter in fused.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_raw_and_normed_tokens_are_fused_alike() -> None:
    encoder = PixioEncoder(dim=12, depth=1, heads=2).eval()
    with torch.no_grad():
        encoder.norm.bias.fill_(1.0)
        raw, normed = (encoder(torch.randn(2, 3, 32, 32), normed=normed).cls for normed in (False, True))
    fused = neck(steps=1)
    for tokens in (raw, normed):
        torch.testing.assert_close(fused(tokens.unsqueeze(1), None), tokens.mean(1))


def test_tokens_of_half_precision_are_fused_in_the_neck_s_own() -> None:
    assert neck()(torch.randn(2, 3, 8, 12).half(), None).dtype == torch.float32


def test_impossible_fusions_are_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'mean'"):
        neck("meen")
    with pytest.raises(UnknownName, match="stack, flare"):
        neck(frames="flair")
    with pytest.raises(BadInput, match="14x14"):
        FusedVector(TokenShape(8, (7, 7), 12), "spatial", "flare", 3, 0)


# sequences

SOURCES = SequenceSpec({"rgb.cls": 12, "rgb_side.cls": 20}, {"proprio": 5})


def _observation(batch: int = 2, steps: int = 3) -> dict[str, Tensor]:
    return {
        "rgb.cls": torch.randn(batch, steps, 8, 12),
        "rgb_side.cls": torch.randn(batch, steps, 4, 20).half(),
        "proprio": torch.randn(batch, steps, 5),
    }


def test_a_sequence_holds_every_token_of_every_source_and_step() -> None:
    sequence = TokenSequence(SOURCES, steps=3, dim=16)
    assert sequence(_observation()).shape == (2, 3 * (8 + 4 + 1), 16)
    assert sequence(_observation()).dtype == torch.float32


def test_cameras_and_steps_are_distinguishable() -> None:
    """The same token gives another vector from another camera or step, and the same one in another place of its set."""
    sequence = TokenSequence(SequenceSpec({"rgb.cls": 12, "rgb_side.cls": 12}, {}), steps=2, dim=16)
    with torch.no_grad():
        sequence.project[1].load_state_dict(sequence.project[0].state_dict())
        token = torch.randn(12).expand(1, 2, 3, 12)
        found = sequence({"rgb.cls": token, "rgb_side.cls": token}).view(2, 2, 3, 16)  # camera, step, token
    assert torch.equal(found[:, :, 0], found[:, :, 2])
    kinds = found[:, :, 0].reshape(4, 16)
    apart = torch.cdist(kinds, kinds) + torch.eye(4)
    assert (apart > 1e-3).all(), "both cameras at both steps"


def test_fewer_steps_than_it_was_made_for_are_the_latest_ones() -> None:
    """As at the start of an episode of a policy that grows its history: the latest step keeps its embedding."""
    sequence = TokenSequence(SOURCES, steps=3, dim=16)
    seen = _observation()
    whole = sequence(seen)
    latest = sequence({key: values[:, -1:] for key, values in seen.items()})
    assert torch.allclose(latest[:, :8], whole[:, 16:24], atol=1e-6)


def test_every_weight_of_a_sequence_gets_a_gradient() -> None:
    sequence = TokenSequence(SOURCES, steps=3, dim=16)
    sequence(_observation()).square().sum().backward()
    for name, parameter in sequence.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
