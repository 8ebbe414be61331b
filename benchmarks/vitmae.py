"""The other side of the pre-training benchmark: transformers' ViTMAEForPreTraining."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from pretraining import Case


def build(case: "Case") -> Any:
    """Return a network of the sizes of `case`, with sdpa attention."""
    from pixio_robot.encoders.torchvision_guard import declare_missing_operators

    declare_missing_operators()
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    (width, depth, heads), (decoder_width, decoder_depth, decoder_heads) = case.encoder, case.decoder
    config = ViTMAEConfig(
        image_size=case.size,
        patch_size=case.patch,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        decoder_hidden_size=decoder_width,
        decoder_num_hidden_layers=decoder_depth,
        decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=4 * decoder_width,
        layer_norm_eps=1e-6,
        mask_ratio=0.75,
        norm_pix_loss=True,
        attn_implementation="sdpa",
    )
    return ViTMAEForPreTraining(config)


def translated(state: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Return our weights under transformers' names."""
    names = {
        "encoder.cls_token": "vit.embeddings.cls_token",
        "encoder.pos_embed": "vit.embeddings.position_embeddings",
        "encoder.patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "encoder.blocks": "vit.layers",
        "encoder.norm": "vit.layernorm",
        "decoder.embed": "decoder.decoder_embed",
        "decoder.pos_embed": "decoder.decoder_pos_embed",
        "decoder.blocks": "decoder.decoder_layers",
        "decoder.norm": "decoder.decoder_norm",
        "decoder.head": "decoder.decoder_pred",
        ".norm1.": ".layernorm_before.",
        ".norm2.": ".layernorm_after.",
        ".attn.proj.": ".attention.o_proj.",
    }
    found = {}
    for name, value in state.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        for part, rows in zip("qkv", value.chunk(3), strict=True) if ".attn.qkv." in name else [("", value)]:
            found[name.replace(".attn.qkv.", f".attention.{part}_proj.")] = rows
    return found
