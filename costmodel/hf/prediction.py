"""Multi-token-prediction modules of a checkpoint: drafts, which are no part of the target."""

from __future__ import annotations

from dataclasses import replace

from ..layers.layer import Layer
from ..layers.weights import Weight
from .decoder import Architecture, Sizes, attention_of, experts_of
from .families import Family
from .hybrids import block_kinds
from .keys import Keys
from .patterns import modules_of_prediction


def prediction_layers(keys: Keys, family: Family, sizes: Sizes, found: Architecture) -> tuple[list[Layer], int]:
    """Build the layers of one prediction module: those that the config lists, or the last one with attention.

    A module also has a projection of the hidden state and the next token's embedding.

    Args:
        keys: The config.
        family: Its family.
        sizes: Its sizes.
        found: The model's layers.

    Returns:
        The layers, and the number of modules.
    """
    count = modules_of_prediction(keys)
    if not count or keys.raw.get("use_mtp") is False or not found.layers:
        return [], 0
    blocks = block_kinds(keys, "mtp_layers_block_type", "mtp_hybrid_override_pattern") if family.builder == "blocks" else None
    if blocks:
        layers = [
            Layer(attention_of(keys, family, sizes, "full", 0), norms=1)
            if kind == "attention"
            else Layer(mlp=experts_of(keys, family), norms=1)
            for kind in blocks
            if kind in ("attention", "moe")
        ]
    else:
        layers = [next((layer for layer in reversed(found.layers) if layer.attention is not None), found.layers[-1])]
    if not layers:
        return [], 0
    projection = Weight("mtp_projection", sizes.d_model, 2 * sizes.d_model)
    first = replace(layers[0], extra=(*layers[0].extra, projection), norms=layers[0].norms + 3)
    return [first, *layers[1:]], count
