"""Bytes and FLOPs of a target pass, and the bandwidth and FLOP/s that a run achieved.

Counted are weights, matrix products and the KV entries of the running rows. Left out are activations and the embedding rows of
the few input tokens.
"""

from __future__ import annotations

import statistics

from ..engine.round_log import RoundLog
from ..model.transformer import Transformer


def pass_bytes(model: Transformer, entries: float) -> float:
    """Bytes that a pass reads: all weights except the embedding, and `entries` KV entries, all rows together. [bytes]"""
    weights = (*model.model.layers.parameters(), model.model.norm.weight, model.lm_head.weight)
    return sum(weight.nbytes for weight in weights) + entries * model.config.kv_bytes_per_token


def pass_flop(model: Transformer, tokens: int, pairs: float) -> float:
    """FLOPs of a pass: matrix products with `tokens` tokens, and attention of `pairs` (token, KV entry) pairs. [FLOP]"""
    matrices = (*model.model.layers.parameters(), model.lm_head.weight)
    config = model.config
    return 2 * tokens * sum(m.numel() for m in matrices if m.ndim == 2) + 4 * pairs * config.d_attention * config.num_layers


def achieved(model: Transformer, log: RoundLog) -> tuple[float, float]:
    """Bandwidth and FLOP rate of the target's passes, medians over the rounds. [bytes/s, FLOP/s]"""
    window = model.config.sliding_window or model.config.max_context_len
    bytes_per_s, flop_per_s = [], []
    for one in log.rounds:
        entries = one.active * min(one.context_len, window)
        query_len = one.gamma + 1
        bytes_per_s.append(pass_bytes(model, entries) / one.verify_s)
        flop_per_s.append(pass_flop(model, one.active * query_len, entries * query_len) / one.verify_s)
    return statistics.median(bytes_per_s), statistics.median(flop_per_s)
