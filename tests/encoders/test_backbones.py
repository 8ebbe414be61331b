"""Laws of loading: every layout gives the same encoder, every bad input one clear message, no file runs code.

All models here are tiny and random; nothing is downloaded.
"""

import json
import logging
import os
import pickle
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pixio_robot.checkpoint import Checkpoint, save_checkpoint
from pixio_robot.encoders import hub
from pixio_robot.encoders import load as backbones
from pixio_robot.encoders.baselines import Baseline
from pixio_robot.encoders.encoder import Backbone, EncoderNetwork, LoadedEncoder, Tokens, TokenShape
from pixio_robot.encoders.load import export_transformers, load_encoder, save_encoder
from pixio_robot.encoders.pixio import PRESETS, PixioEncoder
from pixio_robot.encoders.preprocessing import Preprocessing
from pixio_robot.errors import BadInput, CheckpointError, MissingExtra, PixioError, UnknownName

PREPROCESSING = Preprocessing((64, 96), "squash", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def shaken(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter and buffer a value that matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1 + offset)


@pytest.fixture
def encoder() -> PixioEncoder:
    encoder = PixioEncoder(dim=24, depth=2, heads=3, image_size=64)
    shaken(encoder)
    return encoder.eval()


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the tests' encoder a size whose heads are known, as the published ones are."""
    monkeypatch.setitem(PRESETS, "tiny", (24, 2, 3))


def pixels(height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(5))


def same(encoder: nn.Module, backbone: Backbone, height: int = 64, width: int = 96) -> bool:
    with torch.no_grad():
        ours, theirs = (network(pixels(height, width)) for network in (encoder, backbone))
    return torch.equal(ours.cls, theirs.cls) and torch.equal(ours.patches, theirs.patches)


# --- our own files -----------------------------------------------------------------------------------------------


def test_our_file_gives_back_the_encoder_and_its_preprocessing(encoder: PixioEncoder, tmp_path: Path) -> None:
    before = Backbone(encoder, "anything", PREPROCESSING, weights="random")
    save_encoder(before, tmp_path / "encoder.safetensors", settings={"lr": 0.1}, step=7)
    after = load_encoder(tmp_path / "encoder.safetensors")
    assert same(encoder, after)
    assert (after.preprocessing, after.weights) == (PREPROCESSING, "random")
    assert after.token_shape == TokenShape(8, (4, 6), 24)
    assert after.fingerprint() == before.fingerprint()


def test_a_bare_encoder_counts_as_trained_at_its_own_size(encoder: PixioEncoder, tmp_path: Path) -> None:
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    after = load_encoder(str(tmp_path / "encoder.safetensors"))
    assert (after.weights, after.preprocessing.size) == ("trained", (64, 64))


def test_loaded_encoders_are_frozen_even_inside_a_training_module(encoder: PixioEncoder, tmp_path: Path) -> None:
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    backbone = load_encoder(tmp_path / "encoder.safetensors")
    policy = nn.Sequential(backbone, nn.Linear(2, 2)).train()
    assert policy.training and not backbone.training and not backbone.network.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    backbone.requires_grad_(True)
    policy.train()
    assert backbone.network.training


def test_raw_tokens_can_be_asked_for(encoder: PixioEncoder) -> None:
    backbone = Backbone(encoder, "x", PREPROCESSING)
    with torch.no_grad():
        raw, normed = backbone(pixels(), normed=False), backbone(pixels())
        torch.testing.assert_close(encoder.norm(raw.cls), normed.cls)


def test_preprocess_uses_the_backbones_own_statistics(encoder: PixioEncoder) -> None:
    images = torch.full((1, 64, 96, 3), 255, dtype=torch.uint8)
    top = Backbone(encoder, "x", PREPROCESSING).preprocess(images)[0, :, 0, 0]
    torch.testing.assert_close(top, torch.tensor([(1 - 0.4) / 0.2, (1 - 0.5) / 0.3, (1 - 0.6) / 0.4]))


# --- fingerprints ------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_the_weights(encoder: PixioEncoder) -> None:
    backbone = Backbone(encoder, "x", PREPROCESSING)
    before = backbone.fingerprint()
    assert len(before) == 64 and backbone.fingerprint() == before
    with torch.no_grad():
        encoder.norm.bias[0] += 1e-3
    changed = backbone.fingerprint()
    assert changed != before
    with torch.no_grad():
        encoder.norm.bias[0] -= 1e-3
    assert backbone.to(torch.bfloat16).fingerprint() not in (before, changed)


def test_the_fingerprint_knows_the_heads_and_not_the_name_or_drop_path(encoder: PixioEncoder) -> None:
    prints = []
    for heads, drop_path in ((3, 0.0), (3, 0.5), (4, 0.0)):
        twin = PixioEncoder(dim=24, depth=2, heads=heads, image_size=64, drop_path=drop_path)
        twin.load_state_dict(encoder.state_dict())
        prints.append(Backbone(twin, f"{heads}", PREPROCESSING).fingerprint())
    assert prints[0] == prints[1] != prints[2]


# --- random weights ----------------------------------------------------------------------------------------------


def test_random_weights_are_those_of_the_seed_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    one = load_encoder("random:ti")
    torch.manual_seed(99)
    two, other = load_encoder("random:ti:0"), load_encoder("random:ti:1")
    assert one.fingerprint() == two.fingerprint() != other.fingerprint()
    torch.manual_seed(99)
    fresh = torch.get_rng_state()
    load_encoder("random:ti")
    assert torch.equal(torch.get_rng_state(), fresh)
    torch.set_rng_state(state)


def test_a_side_behind_the_name_sets_the_size_of_images(encoder: PixioEncoder, tmp_path: Path) -> None:
    path = tmp_path / "mine@v2.safetensors"  # an @ of a name is none of ours
    save_encoder(encoder, path)
    own, other = load_encoder(path), load_encoder(f"{path}@48")
    images = torch.randint(0, 256, (2, 60, 80, 3), dtype=torch.uint8)
    assert other.preprocess(images).shape == (2, 3, 48, 48) and other.name == f"{path}@48"
    assert other(other.preprocess(images)).patches.shape[1] == (48 // encoder.patch) ** 2
    assert other.fingerprint() == own.fingerprint() and other.preprocessing != own.preprocessing
    for side in ("0", "50"):
        with pytest.raises(BadInput, match=f"@{side}: images of {side}x{side} px do not fit; both sides must be mult"):
            load_encoder(f"{path}@{side}")


def test_random_weights_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        backbone = load_encoder("random:ti")
    assert backbone.weights == "random" and "random weights" in caplog.text
    assert backbone.token_shape == TokenShape(8, (16, 16), 192)
    assert (backbone.name, backbone.preprocessing) == ("random:ti", Preprocessing())


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pixio", "hf:FOLDER"),
        ("random:tii", "did you mean 'ti'"),
        ("random:", "random:SIZE"),
        ("randm:b", "did you mean 'random:b'"),
        ("none", "proprioception only"),
        ("", "an encoder is one of"),
    ],
)
def test_unknown_names_are_refused_with_the_forms(name: str, message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        load_encoder(name)


# --- damaged and foreign files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["absent.safetensors", "absent.pth"])
def test_absent_files_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"no file .*{name}"):
        load_encoder(tmp_path / name)


@pytest.mark.parametrize("keep", [0, 5, 300, -10])
def test_truncated_safetensors_are_refused(encoder: PixioEncoder, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(encoder, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged"):
        load_encoder(path)


def test_safetensors_of_others_and_of_other_kinds_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not a pixio-robot checkpoint"):
        load_encoder(tmp_path / "foreign.safetensors")
    save_checkpoint(tmp_path / "policy.safetensors", Checkpoint("policy", {"x": torch.zeros(1)}, {}))
    with pytest.raises(CheckpointError, match="kind 'policy'"):
        load_encoder(tmp_path / "policy.safetensors")


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
CHANGES: dict[str, tuple[Change, str]] = {
    "unexpected": (lambda t: t | {"head.weight": torch.zeros(2)}, r"head\.weight"),
    "missing": (lambda t: {k: v for k, v in t.items() if k != "norm.bias"}, r"norm\.bias"),
    "wrong shape": (lambda t: t | {"norm.bias": torch.zeros(5)}, r"norm\.bias has shape \(5,\)"),
}


@pytest.mark.parametrize("case", CHANGES)
@pytest.mark.usefixtures("tiny_preset")
def test_keys_that_do_not_fit_are_named(encoder: PixioEncoder, tmp_path: Path, case: str) -> None:
    change, message = CHANGES[case]
    arguments = dict(encoder=encoder.arguments, preprocessing=PREPROCESSING._asdict(), weights="trained")
    tensors = change(encoder.state_dict())
    save_checkpoint(tmp_path / "ours.safetensors", Checkpoint("encoder", tensors, arguments))
    torch.save(tensors, tmp_path / "official.pth")
    for name in ("ours.safetensors", "official.pth"):
        with pytest.raises(CheckpointError, match=message):
            load_encoder(tmp_path / name)


@pytest.mark.parametrize("arguments", [{}, {"encoder": {"dim": 24}, "preprocessing": {}, "weights": "trained"}])
def test_a_file_that_does_not_explain_itself_is_refused(tmp_path: Path, arguments: dict[str, Any]) -> None:
    save_checkpoint(tmp_path / "x.safetensors", Checkpoint("encoder", {"x": torch.zeros(1)}, arguments))
    with pytest.raises(CheckpointError, match=r"how its encoder is built|does not describe an encoder"):
        load_encoder(tmp_path / "x.safetensors")


# --- official files ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny_preset")
def test_an_official_file_gives_its_encoder(encoder: PixioEncoder, tmp_path: Path) -> None:
    torch.save(encoder.state_dict(), tmp_path / "official.pth")
    backbone = load_encoder(tmp_path / "official.pth")
    assert same(encoder, backbone)
    assert (backbone.weights, backbone.preprocessing.size) == ("trained", (64, 64))
    assert backbone.fingerprint() == Backbone(encoder, "x", PREPROCESSING).fingerprint()


@pytest.mark.usefixtures("tiny_preset")
def test_a_training_checkpoint_gives_its_encoder_and_says_what_it_left(
    encoder: PixioEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {"decoder_blocks.0.norm1.weight": torch.zeros(2), "mask_token": torch.zeros(1), "decoder.x": torch.zeros(1)}
    torch.save({"model": encoder.state_dict() | extra, "epoch": 3}, tmp_path / "training.pth")
    with caplog.at_level(logging.INFO):
        backbone = load_encoder(tmp_path / "training.pth")
    assert same(encoder, backbone)
    assert "ignored 3" in caplog.text
    torch.save(encoder.state_dict() | extra, tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="mask_token"):
        load_encoder(tmp_path / "bare.pth")


def test_an_official_file_of_unknown_size_lists_the_sizes(encoder: PixioEncoder, tmp_path: Path) -> None:
    torch.save(encoder.state_dict(), tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"24 wide and 2 blocks deep.*b 768x12"):
        load_encoder(tmp_path / "odd.pth")


@pytest.mark.parametrize("content", [{"x": torch.zeros(1)}, [torch.zeros(1)], {"model": {"x": 1}}, torch.zeros(1)])
def test_a_pth_of_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"not a Pixio encoder|not a state dict"):
        load_encoder(tmp_path / "other.pth")


@pytest.mark.parametrize("keep", [0, 7, 500, -100])
@pytest.mark.usefixtures("tiny_preset")
def test_a_truncated_pth_is_refused(encoder: PixioEncoder, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "official.pth"
    torch.save(encoder.state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged"):
        load_encoder(path)


class Malicious:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("plain", [False, True], ids=["torch.save", "pickle"])
def test_no_pickle_code_runs(tmp_path: Path, plain: bool) -> None:
    trap = tmp_path / "sprung"
    content = {"cls_token": torch.zeros(1), "trap": Malicious(trap)}
    with open(tmp_path / "evil.pth", "wb") as file:
        if plain:
            pickle.dump(content, file, protocol=2)
        else:
            torch.save(content, file)
    with pytest.raises(CheckpointError, match="not unpickled"):
        load_encoder(tmp_path / "evil.pth")
    assert not trap.exists()
    with open(tmp_path / "evil.pth", "rb") as file:  # the trap does work where pickle code runs
        (pickle.load(file) if plain else torch.load(file, weights_only=False))
    assert trap.exists()


# --- folders of transformers -------------------------------------------------------------------------------------


def new_layout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    names = [
        ("encoder.layer.", "layers."),
        (".norm1.", ".layernorm_before."),
        (".norm2.", ".layernorm_after."),
        (".attention.attention.query.", ".attention.q_proj."),
        (".attention.attention.key.", ".attention.k_proj."),
        (".attention.attention.value.", ".attention.v_proj."),
        (".attention.output.dense.", ".attention.o_proj."),
    ]
    result = {}
    for name, tensor in tensors.items():
        for old, new in names:
            name = name.replace(old, new)
        result[name] = tensor
    return result


def shard(folder: Path) -> None:
    """Split the weights over two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("layout", ["legacy", "new"])
@pytest.mark.parametrize("sharded", [False, True])
def test_every_layout_of_a_folder_gives_the_same_encoder(
    encoder: PixioEncoder, tmp_path: Path, layout: str, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pixio"
    export_transformers(Backbone(encoder, "x", PREPROCESSING), folder)
    tensors = load_file(folder / "model.safetensors")
    assert len(tensors) == 6 + 16 * 2
    if layout == "new":
        save_file(new_layout(tensors), folder / "model.safetensors")
    if sharded:
        shard(folder)
    monkeypatch.setitem(sys.modules, "transformers", None)  # it must not be needed
    backbone = load_encoder(folder)
    assert same(encoder, backbone)
    assert backbone.preprocessing == PREPROCESSING
    assert backbone.fingerprint() == Backbone(encoder, "x", PREPROCESSING).fingerprint()


def test_the_weight_file_of_a_folder_stands_for_the_folder(encoder: PixioEncoder, tmp_path: Path) -> None:
    export_transformers(encoder, tmp_path / "pixio")
    assert same(encoder, load_encoder(tmp_path / "pixio" / "model.safetensors"))


@pytest.mark.parametrize("mode", ["squash", "crop"])
def test_preprocessing_survives_the_export(encoder: PixioEncoder, tmp_path: Path, mode: str) -> None:
    preprocessing = PREPROCESSING._replace(size=(64, 64), resize=mode)
    export_transformers(Backbone(encoder, "x", preprocessing), tmp_path / "pixio")
    assert load_encoder(tmp_path / "pixio").preprocessing == preprocessing


def test_an_export_overwrites_nothing_and_leaves_nothing_behind(encoder: PixioEncoder, tmp_path: Path) -> None:
    export_transformers(encoder, tmp_path / "pixio")
    with pytest.raises(BadInput, match="not empty"):
        export_transformers(encoder, tmp_path / "pixio")
    (tmp_path / "empty").mkdir()
    export_transformers(encoder, tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "pixio"]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "dinov2"}, "'hf:.*pixio'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"image_size": [64, 32]}, "not square"),
        ({"hidden_size": 25}, "does not describe an encoder"),
        ({"hidden_size": "wide"}, "does not describe an encoder"),
        ({"num_hidden_layers": 3}, "12 keys missing"),
        ({"num_hidden_layers": 1}, "12 keys unexpected"),
    ],
)
def test_configs_that_do_not_fit_are_refused(
    encoder: PixioEncoder, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    export_transformers(encoder, tmp_path / "pixio")
    edit(tmp_path / "pixio" / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(tmp_path / "pixio")


def break_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"123")


def lose_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def escape_folder(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../other.safetensors"}}))


def leave_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"trap": Malicious(folder / "sprung")}, folder / "pytorch_model.bin")


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def lose_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_preprocessor(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", size={"longest_edge": 64})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_weights, "damaged"),
        (lose_shard, "no file .*00002-of-00002"),
        (escape_folder, "weight_map"),
        (leave_a_pickle, r"only pytorch_model\.bin, which could run code"),
        (lose_weights, "no weights"),
        (break_config, r"config\.json cannot be read"),
        (lose_config, r"config\.json cannot be read"),
        (break_preprocessor, "cannot be understood"),
    ],
)
def test_damaged_folders_are_refused(
    encoder: PixioEncoder, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "pixio"
    export_transformers(encoder, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(folder)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"size": {"height": 32, "width": 48}}, Preprocessing((32, 48))),
        (
            {"size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            Preprocessing((32, 32), "squash", (0.5,) * 3, (0.5,) * 3),
        ),
        ({"size": {"shortest_edge": 48}}, Preprocessing((48, 48), "crop")),
        (
            {"size": {"shortest_edge": 48}, "do_center_crop": True, "crop_size": 32, "resample": 2},
            Preprocessing((32, 32), "crop", shorter=48, interpolation="bilinear"),
        ),
        ({"size": 32, "do_center_crop": True, "crop_size": 32}, Preprocessing((32, 32), "crop")),
        (
            {"size": 48, "do_center_crop": False, "crop_size": 32, "do_normalize": False},
            Preprocessing((48, 48), "squash", (0.0,) * 3, (1.0,) * 3),
        ),
        (None, Preprocessing((64, 64))),
    ],
)
def test_preprocessing_is_read_from_the_folder(
    encoder: PixioEncoder, tmp_path: Path, config: dict[str, Any] | None, expected: Preprocessing
) -> None:
    export_transformers(encoder, tmp_path / "pixio")
    path = tmp_path / "pixio" / "preprocessor_config.json"
    path.unlink()
    if config is not None:
        path.write_text(json.dumps(config))
    assert load_encoder(tmp_path / "pixio").preprocessing == expected


# --- the hub -----------------------------------------------------------------------------------------------------


def test_a_hub_name_is_fetched_and_read(encoder: PixioEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    export_transformers(encoder, tmp_path / "snapshot")
    asked: dict[str, Any] = {}

    def snapshot(repository: str, allow_patterns: list[str]) -> str:
        asked.update(repository=repository, patterns=allow_patterns)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    backbone = load_encoder("facebook/pixio-vitb16")
    assert same(encoder, backbone) and backbone.name == "facebook/pixio-vitb16"
    assert asked == {"repository": "facebook/pixio-vitb16", "patterns": ["*.json", "*.safetensors"]}


HUB_ERRORS = {
    "GatedRepoError": (403, r"is gated: accept its licence at https://huggingface\.co/facebook/pixio-vitb16.*HF_TOKEN"),
    "RepositoryNotFoundError": (404, "no such repository"),
    "LocalEntryNotFoundError": (None, "out of reach.*use their folder"),
    "OfflineModeIsEnabled": (None, "out of reach.*use their folder"),
    "HFValidationError": (None, "no such repository"),
    "HfHubHTTPError": (500, "the hub answered 500"),
}


@pytest.mark.parametrize("case", HUB_ERRORS)
def test_every_failure_of_the_hub_is_one_message(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub import errors

    status, message = HUB_ERRORS[case]
    kind = getattr(errors, case)

    class Response:
        status_code = status
        headers: dict[str, str] = {}  # noqa: RUF012
        request = None

    def fail(*_: Any, **__: Any) -> str:
        raise kind("refused") if status is None else kind("refused", response=Response())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=message):
        load_encoder("facebook/pixio-vitb16")


def test_other_failures_of_the_hub_are_one_message_too(monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def fail(*_: Any, **__: Any) -> str:
        raise TimeoutError("slow")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match="TimeoutError: slow"):
        hub.fetch("facebook/pixio-vitb16")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("facebook/pixio-vitb16", "huggingface_hub", "hf"),
        ("hf:facebook/dinov2-base", "transformers", "hf"),
        ("timm:resnet18", "timm", "timm"),
        ("random:timm:resnet18", "timm", "timm"),
    ],
)
def test_a_missing_extra_says_which(name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("pixio_robot.encoders.baselines.declare_missing_operators", lambda: None)
    with pytest.raises(MissingExtra, match=rf"pip install 'pixio-robot\[{extra}\]'"):
        load_encoder(name)


def test_only_pixio_is_saved_and_exported(tmp_path: Path) -> None:
    class Other(Baseline):
        def read(self, pixels: Tensor, normed: bool) -> tuple[Tensor, Tensor]:
            return pixels.mean((2, 3)).unsqueeze(1), pixels

    backbone = Backbone(Other(nn.Linear(1, 1)), "other", PREPROCESSING)
    assert backbone.token_shape == TokenShape(1, (64, 96), 3)
    for write in (save_encoder, export_transformers):
        with pytest.raises(CheckpointError, match="not a Pixio encoder"):
            write(backbone, tmp_path / "x")


# --- plug-ins ----------------------------------------------------------------------------------------------------


class Stripes(EncoderNetwork):
    """A network of another package: one class token, four patches, no optional capability."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.arguments = {"text": text}
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, pixels: Tensor, *, normed: bool = True) -> Tokens:
        patches = nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(2).transpose(1, 2) * self.weight
        return Tokens(patches.mean(1, keepdim=True), patches)

    def token_shape(self, size: tuple[int, int]) -> TokenShape:
        return TokenShape(1, (2, 2), 3)


def load_stripes(text: str) -> LoadedEncoder:
    return LoadedEncoder(Stripes(text), Preprocessing((8, 8)), "random")


def load_nothing(text: str) -> nn.Module:
    return nn.Linear(1, 1)


def load_badly(text: str) -> LoadedEncoder:
    raise RuntimeError("no GPU")


@pytest.fixture
def stripes(entries: list[metadata.EntryPoint]) -> None:
    sys.modules["stripes"] = sys.modules[__name__]  # the tests' modules have no name that can be imported
    for name in ("stripes", "nothing", "badly"):
        entries.append(metadata.EntryPoint(name, f"stripes:load_{name}", "pixio_robot.encoders"))
    yield
    del sys.modules["stripes"]


def test_an_encoder_of_another_package_is_used_like_ours(stripes: None) -> None:
    backbone = load_encoder("stripes:a/b:c@16")
    assert backbone.network.arguments == {"text": "a/b:c"} and backbone.weights == "random"
    assert backbone.preprocessing.size == (16, 16) and backbone.token_shape == TokenShape(1, (2, 2), 3)
    pixels = backbone.preprocess(torch.zeros(2, 20, 30, 3, dtype=torch.uint8))
    assert backbone(pixels).patches.shape == (2, 4, 3)
    assert backbone.fingerprint() != load_encoder("stripes:other").fingerprint()
    backbone.network.bake_positions(2, 2)  # nothing to bake


def test_a_capability_that_a_network_lacks_is_refused(stripes: None) -> None:
    backbone = load_encoder("stripes:a")
    pixels = torch.zeros(1, 3, 8, 8)
    with pytest.raises(BadInput, match="stripes:a takes no patch residual"):
        backbone(pixels, patch_residual=torch.zeros(1, 4, 3))
    assert backbone.network.block_count == 0 and not backbone.network.can_finetune
    with pytest.raises(BadInput, match="its last block only"):
        backbone.network.block_tokens(pixels, [0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing:a", "'nothing:a' returned a Linear; its loader must return a LoadedEncoder"),
        ("badly:a", r"'badly:a' cannot be loaded \(RuntimeError: no GPU\)"),
        ("stripe:a", r"stripes:\.\.\. +from a plug-in"),
    ],
)
def test_a_plugin_that_fails_is_named(stripes: None, name: str, message: str) -> None:
    with pytest.raises(PixioError, match=message):
        load_encoder(name)


def test_every_error_has_the_one_root() -> None:
    with pytest.raises(PixioError):
        backbones.load_encoder("no such thing")
