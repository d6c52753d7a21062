"""What a pass of the target reads and computes, from the model as it is held here, and at what rate a run did so.

KV entries are those that the running rows know; activations and the embedding of the few tokens fed are left out.
"""

from __future__ import annotations

import statistics

from ..engine.round_log import Trace
from ..model.transformer import Transformer


def pass_bytes(model: Transformer, entries: float) -> float:
    """What a pass reads: all weights but the embedding, and so many KV entries, over all rows. [bytes]"""
    weights = (*model.model.layers.parameters(), model.model.norm.weight, model.lm_head.weight)
    return sum(weight.nbytes for weight in weights) + entries * model.config.kv_bytes_per_token


def pass_flop(model: Transformer, tokens: int, pairs: float) -> float:
    """What a pass computes: products of matrices with so many tokens, and of so many pairs of token and KV entry. [FLOP]"""
    matrices = (*model.model.layers.parameters(), model.lm_head.weight)
    config = model.config
    return 2 * tokens * sum(m.numel() for m in matrices if m.ndim == 2) + 4 * pairs * config.d_attention * config.num_layers


def achieved(model: Transformer, trace: Trace) -> tuple[float, float]:
    """Medians over the rounds of what the target's passes read and computed a second. [bytes/s, FLOP/s]"""
    window = model.config.sliding_window or model.config.max_context_len
    bytes_per_s, flop_per_s = [], []
    for pass_s, rows, context, gamma in zip(trace.verify_s, trace.active_rows, trace.contexts, trace.gammas, strict=True):
        entries = rows * min(context, window)
        bytes_per_s.append(pass_bytes(model, entries) / pass_s)
        flop_per_s.append(pass_flop(model, rows * (gamma + 1), entries * (gamma + 1)) / pass_s)
    return statistics.median(bytes_per_s), statistics.median(flop_per_s)
