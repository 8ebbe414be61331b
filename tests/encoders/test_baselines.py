"""Laws of the baselines: foreign encoders give the tokens their own library gives, in our order.

The models are tiny, random and saved by the tests; the file needs transformers or timm and skips without them.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixio_robot.encoders import hub
from pixio_robot.encoders.load import Backbone, export_transformers, load_encoder
from pixio_robot.encoders.pixio import PixioEncoder, TokenShape
from pixio_robot.encoders.preprocessing import Preprocessing
from pixio_robot.encoders.torchvision_guard import declare_missing_operators
from pixio_robot.errors import BadInput, CheckpointError, UnknownName

VIT = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8
)
PYRAMID = dict(hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1])

# configuration class, its arguments, tokens expected at 32x32 or 64x64
FAMILIES: dict[str, tuple[str, dict[str, Any], TokenShape]] = {
    "vit": ("ViTConfig", VIT, TokenShape(1, (4, 4), 32)),
    "deit": ("DeiTConfig", VIT, TokenShape(2, (4, 4), 32)),
    "mae": ("ViTMAEConfig", VIT | {"mask_ratio": 0.75}, TokenShape(1, (4, 4), 32)),
    "dinov2": ("Dinov2Config", VIT | {"mlp_ratio": 2}, TokenShape(1, (4, 4), 32)),
    "dinov2 registers": ("Dinov2WithRegistersConfig", VIT | {"num_register_tokens": 3}, TokenShape(1, (4, 4), 32)),
    "dinov3": ("DINOv3ViTConfig", VIT | {"num_register_tokens": 4}, TokenShape(1, (4, 4), 32)),
    "clip": ("CLIPVisionConfig", VIT, TokenShape(1, (4, 4), 32)),
    "siglip": ("SiglipVisionConfig", VIT, TokenShape(1, (4, 4), 32)),
    "resnet": ("ResNetConfig", PYRAMID | {"embedding_size": 8, "image_size": 64}, TokenShape(1, (2, 2), 24)),
    "convnext": ("ConvNextConfig", PYRAMID | {"image_size": 64}, TokenShape(1, (2, 2), 24)),
    "dinov3 convnext": ("DINOv3ConvNextConfig", PYRAMID | {"image_size": 64}, TokenShape(1, (2, 2), 24)),
}


@pytest.fixture
def transformers() -> Any:
    declare_missing_operators()
    return pytest.importorskip("transformers")


def family(transformers: Any, name: str, folder: Path) -> Any:
    """Save a model of the family to `folder` and return it."""
    kind, arguments, _ = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(getattr(transformers, kind)(**arguments))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.eval().save_pretrained(folder)
    return model


def pixels(side: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_family_gives_its_own_tokens(transformers: Any, name: str, tmp_path: Path) -> None:
    model = family(transformers, name, tmp_path)
    backbone = load_encoder(f"hf:{tmp_path}")
    shape = FAMILIES[name][2]
    side = FAMILIES[name][1]["image_size"]
    assert backbone.token_shape == shape
    assert backbone.preprocessing == Preprocessing((side, side))
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    tokens, raw = backbone(pixels(side)), backbone(pixels(side), normed=False)
    count = shape.grid[0] * shape.grid[1]
    for given in (tokens, raw):
        assert given.cls.shape == (2, shape.cls, shape.dim) and given.patches.shape == (2, count, shape.dim)
    more = {"noise": torch.arange(count).float().expand(2, -1)} if name == "mae" else {}
    if name == "mae":
        model.config.mask_ratio = 0.0
    output = model(pixels(side), **more)
    last, pooled = output.last_hidden_state, output.get("pooler_output")
    if last.ndim == 4:
        torch.testing.assert_close(tokens.patches, last.flatten(2).transpose(1, 2))
        torch.testing.assert_close(tokens.cls[:, 0], pooled.flatten(1))
        return
    last = model.post_layernorm(last) if name == "clip" else last
    torch.testing.assert_close(tokens.patches, last[:, -count:])
    torch.testing.assert_close(tokens.cls, pooled.unsqueeze(1) if name == "siglip" else last[:, : shape.cls])


@pytest.mark.parametrize(
    ("name", "norm"),
    [("vit", "layernorm"), ("mae", "layernorm"), ("dinov2 registers", "layernorm"), ("dinov3", "norm")],
)
@torch.no_grad()
def test_raw_tokens_become_normed_by_the_final_norm(transformers: Any, name: str, norm: str, tmp_path: Path) -> None:
    final = getattr(family(transformers, name, tmp_path), norm)
    backbone = load_encoder(f"hf:{tmp_path}")
    raw, normed = backbone(pixels(32), normed=False), backbone(pixels(32))
    torch.testing.assert_close(final(raw.cls), normed.cls)
    torch.testing.assert_close(final(raw.patches), normed.patches)
    assert not torch.allclose(raw.patches, normed.patches)


@torch.no_grad()
def test_mae_sees_every_patch_in_place_every_time(transformers: Any, tmp_path: Path) -> None:
    family(transformers, "mae", tmp_path)
    backbone = load_encoder(f"hf:{tmp_path}")
    torch.testing.assert_close(backbone(pixels(32)).patches, backbone(pixels(32)).patches, atol=0, rtol=0)
    changed = pixels(32)
    changed[:, :, 24:, 24:] += 3.0  # the last patch
    difference = (backbone(changed).patches - backbone(pixels(32)).patches).norm(dim=-1)
    assert (difference.argmax(dim=1) == 15).all()


@pytest.mark.parametrize("name", ["vit", "mae", "dinov2", "dinov3", "clip", "siglip", "deit"])
@torch.no_grad()
def test_other_sizes_work_and_parts_of_patches_are_refused(transformers: Any, name: str, tmp_path: Path) -> None:
    family(transformers, name, tmp_path)
    backbone = load_encoder(f"hf:{tmp_path}")
    assert backbone(pixels(48)).patches.shape == (2, 36, 32)
    with pytest.raises(BadInput, match="multiples of 8"):
        backbone(pixels(44))


@pytest.mark.parametrize("name", ["clip", "siglip"])
@torch.no_grad()
def test_the_image_tower_is_taken_out_of_an_image_text_model(transformers: Any, name: str, tmp_path: Path) -> None:
    title = {"clip": "CLIP", "siglip": "Siglip"}[name]
    text = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    text |= dict(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    config = getattr(transformers, f"{title}Config")(text_config=text, vision_config=VIT)
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    tokens = load_encoder(f"hf:{tmp_path}")(pixels(32))
    output = model.vision_model(pixels(32))
    expected = output.pooler_output
    torch.testing.assert_close(tokens.cls[:, 0], expected)


@torch.no_grad()
def test_pixio_through_transformers_agrees_with_our_own(transformers: Any, tmp_path: Path) -> None:
    encoder = PixioEncoder(dim=24, depth=2, heads=3, image_size=64)
    for parameter in encoder.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    export_transformers(Backbone(encoder.eval(), "x", Preprocessing((64, 64))), tmp_path / "pixio")
    model = transformers.AutoModel.from_pretrained(tmp_path / "pixio").eval()
    last = model(pixels(64)).last_hidden_state
    ours, theirs = load_encoder(tmp_path / "pixio"), load_encoder(f"hf:{tmp_path / 'pixio'}")
    tokens = ours(pixels(64))
    torch.testing.assert_close(torch.cat(tokens, dim=1), last, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat(theirs(pixels(64)), dim=1), last, atol=1e-5, rtol=0)
    assert ours.token_shape == theirs.token_shape
    assert ours.preprocessing == theirs.preprocessing
    model.save_pretrained(tmp_path / "again")
    again = load_encoder(tmp_path / "again")
    assert again.fingerprint() == ours.fingerprint()


def test_an_exported_folder_preprocesses_alike_in_transformers(transformers: Any, tmp_path: Path) -> None:
    numpy, image_module = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    encoder = PixioEncoder(dim=24, depth=1, heads=3, image_size=64)
    backbone = Backbone(encoder, "x", Preprocessing((64, 64), "squash", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    export_transformers(backbone, tmp_path / "pixio")
    image = numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=numpy.uint8)
    kind = transformers.models.bit.image_processing_pil_bit.BitImageProcessorPil
    processor = kind.from_pretrained(tmp_path / "pixio")
    theirs = processor(image_module.fromarray(image), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(backbone.preprocess(torch.from_numpy(image)[None]), theirs, atol=1e-5, rtol=0)


def test_the_fingerprint_of_a_model_without_a_trained_pooler_is_stable(transformers: Any, tmp_path: Path) -> None:
    family(transformers, "vit", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler.")}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    state = torch.get_rng_state()
    prints = {load_encoder(f"hf:{tmp_path}").fingerprint() for _ in range(2)}
    assert len(prints) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_missing_weights_are_named_not_drawn(transformers: Any, tmp_path: Path) -> None:
    family(transformers, "dinov2", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("layernorm.bias")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights.*layernorm\.bias"):
        load_encoder(f"hf:{tmp_path}")


def test_what_is_no_vision_model_is_refused(transformers: Any, tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(CheckpointError, match="does not take images"):
        load_encoder(f"hf:{tmp_path / 'bert'}")


def test_folders_that_cannot_be_loaded_are_one_message_each(transformers: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        load_encoder(f"hf:{tmp_path / 'absent'}")
    family(transformers, "vit", tmp_path / "vit")
    weights = tmp_path / "vit" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot load"):
        load_encoder(f"hf:{tmp_path / 'vit'}")
    weights.rename(tmp_path / "vit" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pytorch_model\.bin"):
        load_encoder(f"hf:{tmp_path / 'vit'}")


def test_code_in_a_model_folder_does_not_run(transformers: Any, tmp_path: Path) -> None:
    family(transformers, "vit", tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    path = tmp_path / "config.json"
    changes = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match="code from a model folder is not run"):
        load_encoder(f"hf:{tmp_path}")
    assert not (tmp_path / "sprung").exists()


def test_the_guard_makes_torchvision_importable_and_may_be_called_twice() -> None:
    declare_missing_operators()
    declare_missing_operators()
    pytest.importorskip("torchvision")


# --- timm --------------------------------------------------------------------------------------------------------


@pytest.fixture
def timm() -> Any:
    declare_missing_operators()
    return pytest.importorskip("timm")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("vit_tiny_patch16_224", TokenShape(1, (14, 14), 192)),
        ("deit_tiny_distilled_patch16_224", TokenShape(2, (14, 14), 192)),
        ("vit_small_patch16_dinov3", TokenShape(1, (16, 16), 384)),
        ("resnet18", TokenShape(1, (7, 7), 512)),
        ("convnext_atto", TokenShape(1, (7, 7), 320)),
        ("mobilenetv3_small_050", TokenShape(1, (7, 7), 288)),
    ],
)
@torch.no_grad()
def test_timm_models_give_tokens(timm: Any, name: str, shape: TokenShape) -> None:
    backbone = load_encoder(f"random:timm:{name}")
    assert backbone.token_shape == shape and backbone.weights == "random"
    given = torch.randn(1, 3, *backbone.preprocessing.size)
    features = backbone.network.model.forward_features(given)  # type: ignore[union-attr, operator]
    tokens, raw = backbone(given), backbone(given, normed=False)
    count = shape.grid[0] * shape.grid[1]
    expected = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features[:, -count:]
    torch.testing.assert_close(tokens.patches, expected)
    assert tokens.cls.shape == raw.cls.shape == (1, shape.cls, shape.dim)
    assert raw.patches.shape == tokens.patches.shape
    if features.ndim == 3:
        torch.testing.assert_close(tokens.cls, features[:, : shape.cls])
        norm = backbone.network.model.norm
        torch.testing.assert_close(norm(raw.patches), tokens.patches)  # type: ignore[operator]
    with pytest.raises(BadInput, match="takes"):
        backbone(torch.zeros(1, 3, 32, 32))


def test_timm_random_weights_are_those_of_the_seed(timm: Any) -> None:
    state = torch.get_rng_state()
    one, two, other = (load_encoder(f"random:timm:resnet10t{seed}") for seed in ("", ":0", ":1"))
    assert one.fingerprint() == two.fingerprint() != other.fingerprint()
    assert torch.equal(torch.get_rng_state(), state)


def test_timm_weights_come_from_safetensors_alone(timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("resnet10t", num_classes=1000)
    asked = []

    def fetch(repository: str, patterns: list[str]) -> Path:
        asked.append((repository, patterns))
        return tmp_path

    monkeypatch.setattr(hub, "fetch", fetch)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load_encoder("timm:resnet10t")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    backbone = load_encoder("timm:resnet10t")
    assert asked[0][0].startswith("timm/resnet10t") and asked[0][1] == ["*model.safetensors"]
    ours = backbone.network.model.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in ours.items())
    assert backbone.weights == "trained"


@pytest.mark.parametrize(
    ("name", "message"), [("timm:resnet19", "did you mean 'resnet18'"), ("timm:resnet18.nonsense", "no weights")]
)
def test_unknown_timm_models_are_refused(timm: Any, name: str, message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        load_encoder(name)
