"""Laws of the encoder: its sizes, its agreement with transformers, masking, drop path, compilation and export.

Shapes: B batch, K class tokens, N patches, D width.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from pixio_robot.encoders.pixio import PRESETS, Block, PixioEncoder, Tokens
from pixio_robot.encoders.torchvision_guard import declare_missing_operators
from pixio_robot.errors import BadInput, UnknownName

PARAMETERS = {
    "ti": 5_538_624,
    "s": 21_694_080,
    "b": 85_855_488,
    "l": 303_377_408,
    "h": 631_013_120,
    "1b": 1_361_515_008,
    "5b": 5_440_939_008,
}


def tiny(seed: int = 0, **changes: Any) -> PixioEncoder:
    """Return a small encoder whose norms, biases and positions all matter."""
    encoder = PixioEncoder(**{"dim": 32, "depth": 3, "heads": 4, **changes})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            std = 0.3 if name in ("pos_embed", "cls_token") else 0.1
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * std + ("norm" in name and "weight" in name)
            )
    return encoder.eval()


def noise(height: int = 256, width: int = 256, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def assert_close(ours: Tokens, theirs: Tokens, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours.cls, theirs.cls, atol=atol, rtol=0)
    torch.testing.assert_close(ours.patches, theirs.patches, atol=atol, rtol=0)


@pytest.mark.parametrize("size", PRESETS)
def test_sizes_have_the_published_number_of_parameters(size: str) -> None:
    with torch.device("meta"):
        encoder = PixioEncoder.preset(size)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == PARAMETERS[size]


def test_unknown_size_lists_the_sizes() -> None:
    with pytest.raises(UnknownName, match="ti, s, b, l, h, 1b, 5b"):
        PixioEncoder.preset("huge")


@pytest.mark.parametrize(("changes", "message"), [({"heads": 5}, "5 heads"), ({"image_size": 250}, "image_size 250")])
def test_impossible_arguments_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        tiny(**changes)


def transformers_twin(encoder: PixioEncoder) -> Any:
    declare_missing_operators()
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "PixioModel"):
        pytest.skip("this transformers has no Pixio")
    arguments = encoder.arguments
    config = transformers.PixioConfig(
        hidden_size=arguments["dim"], num_hidden_layers=arguments["depth"], num_attention_heads=arguments["heads"]
    )
    twin = transformers.PixioModel(config).eval()
    rename = [
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("embeddings.", ""),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("layernorm", "norm"),
        ("layers.", "blocks."),
        ("attention.o_proj", "attn.proj"),
    ]
    ours, theirs = encoder.state_dict(), twin.state_dict()
    for name in theirs:
        key = name
        for old, new in rename:
            key = key.replace(old, new)
        for row, part in enumerate("qkv"):
            if f"attention.{part}_proj" in key:
                theirs[name] = ours[key.replace(f"attention.{part}_proj", "attn.qkv")].chunk(3)[row]
                break
        else:
            theirs[name] = ours[key]
    twin.load_state_dict(theirs)
    return twin


@pytest.mark.parametrize("size", [(256, 256), (224, 224), (240, 240), (256, 320)])
@torch.no_grad()
def test_agrees_with_transformers(size: tuple[int, int]) -> None:
    encoder, pixels = tiny(), noise(*size)
    twin = transformers_twin(encoder)
    output = twin(pixels, output_hidden_states=True)
    last = output.last_hidden_state
    assert_close(encoder(pixels), Tokens(last[:, :8], last[:, 8:]))
    for normed in (False, True):
        for index, tokens in enumerate(encoder(pixels, blocks=[0, 1, 2], normed=normed)):
            state = output.hidden_states[index + 1]
            state = twin.layernorm(state) if normed else state
            assert_close(tokens, Tokens(state[:, :8], state[:, 8:]))


@pytest.mark.parametrize("size", [(250, 250), (256, 250), (8, 256)])
def test_sizes_that_leave_part_of_a_patch_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match="multiples of 16"):
        tiny()(noise(*size))


@torch.no_grad()
def test_blocks_come_in_the_order_asked() -> None:
    encoder, pixels = tiny(), noise(64, 64)
    first, middle, last = encoder(pixels, blocks=[0, 1, 2])
    again = encoder(pixels, blocks=[2, 0, 2])
    assert [torch.equal(a.cls, b.cls) for a, b in zip(again, [last, first, last], strict=True)] == [True] * 3
    assert not torch.allclose(first.cls, middle.cls)
    assert torch.equal(encoder(pixels).patches, last.patches)


@pytest.mark.parametrize("blocks", [[3], [-1], [0, 7]])
def test_blocks_that_do_not_exist_are_refused(blocks: list[int]) -> None:
    with pytest.raises(BadInput, match="blocks 0 to 2"):
        tiny()(noise(64, 64), blocks=blocks)


@torch.no_grad()
def test_raw_tokens_become_normed_by_the_final_norm() -> None:
    encoder, pixels = tiny(), noise(64, 64)
    raw, normed = encoder(pixels, normed=False), encoder(pixels)
    assert_close(Tokens(encoder.norm(raw.cls), encoder.norm(raw.patches)), normed)
    assert not torch.allclose(raw.cls, normed.cls)


@torch.no_grad()
def test_seeing_all_patches_changes_nothing() -> None:
    encoder, pixels = tiny(), noise(64, 96)
    visible = torch.arange(24).expand(2, -1)
    assert_close(encoder(pixels, visible=visible), encoder(pixels))


@torch.no_grad()
def test_the_order_of_visible_patches_is_the_order_of_the_output() -> None:
    encoder, pixels = tiny(), noise(64, 64)
    order = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(seed)) for seed in range(2)])
    shuffled, straight = encoder(pixels, visible=order), encoder(pixels)
    rows = order.unsqueeze(-1).expand(-1, -1, 32)
    assert_close(shuffled, Tokens(straight.cls, straight.patches.gather(1, rows)))


@torch.no_grad()
def test_a_hidden_patch_cannot_influence_the_output() -> None:
    encoder, pixels = tiny(), noise(64, 64)
    visible = torch.tensor([[1, 2, 5, 11]]).expand(2, -1)
    before = encoder(pixels, visible=visible)
    pixels[:, :, :16, :16] = 100.0  # patch 0
    pixels[:, :, 48:, 48:] = -100.0  # patch 15
    assert_close(encoder(pixels, visible=visible), before, atol=0)
    pixels[:, :, :16, 16:32] = 100.0  # patch 1, which is seen
    assert not torch.allclose(encoder(pixels, visible=visible).cls, before.cls)


def test_drop_path_is_a_linear_ramp() -> None:
    encoder = PixioEncoder(dim=32, depth=5, heads=4, drop_path=0.4)
    assert [1 - float(block.keep) for block in encoder.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


@torch.no_grad()
def test_residuals_are_dropped_in_training_alone() -> None:
    dropping, plain = tiny(drop_path=0.9), tiny()
    pixels = noise(64, 64, batch=8)
    assert_close(dropping(pixels), plain(pixels), atol=0)
    assert not torch.allclose(dropping.train()(pixels).cls, plain.train()(pixels).cls)


@torch.no_grad()
def test_dropped_residuals_keep_their_mean() -> None:
    block = Block(dim=4, heads=1, drop_path=0.5).train()
    assert block._drop(torch.ones(20_000, 1, 1)).mean().item() == pytest.approx(1.0, abs=0.05)


@torch.no_grad()
def test_the_generator_decides_the_weights() -> None:
    one, two = tiny(), tiny(seed=1)
    for encoder in (one, two):
        encoder.initialise(torch.Generator().manual_seed(7))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@torch.no_grad()
def test_autocast_keeps_the_direction_of_tokens() -> None:
    encoder, pixels = tiny(), noise()
    full = encoder(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(pixels)
    for a, b in zip(full, half, strict=True):
        assert torch.cosine_similarity(a, b.float(), dim=-1).min() > 0.999


@pytest.mark.slow
@torch.no_grad()
def test_compiled_encoder_agrees() -> None:
    encoder, pixels = tiny(), noise(224, 224)
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
    assert_close(compiled(pixels), encoder(pixels))


@torch.no_grad()
def test_exported_encoder_agrees() -> None:
    encoder, pixels = tiny(), noise(224, 224)
    program = torch.export.export(encoder, (pixels,))
    assert_close(program.module()(pixels), encoder(pixels))
