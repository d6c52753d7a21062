"""Encoders for images and sound: how many parameters they hold, roughly, from their sizes."""

from __future__ import annotations

from .keys import Keys

DEPTHS = ("num_hidden_layers", "depth", "vt_num_hidden_layers", "layers", "encoder_layers")
WIDTHS = ("embed_dim", "hidden_size", "vt_hidden_size", "width", "d_model")  # of Qwen2-VL, `hidden_size` is the output's
HIDDEN = ("intermediate_size", "vt_intermediate_size", "encoder_ffn_dim")


def encoder_params(keys: Keys, d_model: int) -> tuple[int, bool]:
    """Count the parameters of encoders, within about a tenth.

    Counted are attention and MLP of every layer, patches, and a projector to the language model. Which projector a family has is
    not known: two matrices on merged patches are assumed.

    Args:
        keys: The config of the whole model.
        d_model: Width of the language model.

    Returns:
        The count, and whether there is an encoder whose sizes are not given.
    """
    total, unknown = 0, False
    for name in ("vision_config", "audio_config", "vision_encoder_config"):
        part = keys.part(name)
        if part is None:
            continue
        if part.first(*DEPTHS) is None or part.first(*WIDTHS) is None:
            unknown = True
            continue
        depth, width = part.whole(*DEPTHS), part.whole(*WIDTHS)
        hidden = part.whole_or(4 * width, *HIDDEN) or 4 * width
        if str(part.raw.get("model_type")).startswith("glm4v"):  # whose `intermediate_size` is that of the projector
            hidden = part.whole_or(hidden, "out_hidden_size") or hidden
        gated = 3 if part.raw.get("hidden_act") == "silu" or "gemma4" in str(part.raw.get("model_type")) else 2
        merged = (part.whole_or(1, "spatial_merge_size") or 1) ** 2 * width
        size = part.raw.get("patch_size")
        side = size[0] if isinstance(size, list) and size and isinstance(size[0], int) else part.whole_or(14, "patch_size") or 14
        patch = side**2 * 3 * (part.whole_or(1, "temporal_patch_size") or 1) * width
        projector = merged * merged + merged * d_model
        taps = part.items("deepstack_visual_indexes") or []
        total += depth * (4 * width * width + gated * width * hidden + 8 * width + hidden) + patch + (1 + len(taps)) * projector
    return total, unknown
