"""Bytes and FLOPs of a pass, counted by hand, are what memory holds and what torch itself counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch.utils.flop_counter import FlopCounterMode

from magicdec.executor.engine.round_log import RoundLog, RoundRecord
from magicdec.executor.kv.attention import SlotAttention
from magicdec.executor.kv.cache import KvCache
from magicdec.executor.measuring.throughput import achieved, pass_bytes, pass_flop


@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": True}, {"num_kv_heads": 4}], ids=["grouped", "tied", "ungrouped"])
@pytest.mark.parametrize("query_len", [1, 4])
def test_a_pass_counts_as_torch_counts_it(changes: dict[str, Any], query_len: int) -> None:
    model, batch_size, context_len = tiny_model(**changes), 3, 20
    slots = context_len + query_len
    cache = KvCache(model.config, batch_size, slots, model.device, model.dtype)
    positions_BT = torch.arange(context_len, slots).expand(batch_size, -1)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.logits(model(torch.zeros_like(positions_BT), positions_BT, SlotAttention(cache, positions_BT)))
    tokens = batch_size * query_len
    assert pass_flop(model, tokens, tokens * slots) == counter.get_total_flops()
    read = {id(p): p.nbytes for name, p in model.named_parameters() if "embed" not in name or "tied_embeddings" in changes}
    assert pass_bytes(model, batch_size * slots) == sum(read.values()) + cache.nbytes


def test_rates_are_medians_over_rounds_and_a_window_caps_what_is_read() -> None:
    model = tiny_model(family="mistral", sliding_window=16)
    log = RoundLog(
        [
            RoundRecord(
                0.1, verify_s, 5.0, emitted=1, active=active, gamma=3, context_len=context_len, rows_by_accepted=(active, 0, 0, 0)
            )
            for verify_s, active, context_len in ((2.0, 2, 10.0), (1.0, 2, 100.0), (4.0, 1, 100.0))
        ]
    )
    rounds = [(20.0, 8, 2.0), (32.0, 8, 1.0), (16.0, 4, 4.0)]  # entries, tokens, seconds
    bytes_per_s = sorted(pass_bytes(model, entries) / s for entries, _, s in rounds)
    flop_per_s = sorted(pass_flop(model, tokens, 4 * entries) / s for entries, tokens, s in rounds)
    assert achieved(model, log) == (bytes_per_s[1], flop_per_s[1])
