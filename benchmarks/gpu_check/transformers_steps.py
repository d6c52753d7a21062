"""Stage `transformers`: plain decoding steps beside transformers' with a static cache, eager and compiled, on the same weights."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable

import torch
from torch import Tensor

from magicdec.executor.decode_loop import decode
from magicdec.executor.engine.round_log import RoundLog
from magicdec.executor.measuring.timing import median_time_s
from magicdec.executor.model.transformer import Transformer

from ..replayed import random_batch
from .passes import largest, model_of
from .setting import Setting

POINTS = (((8,), 8192), ((1,), 8192), ((16, 8), 32768))


def run(setting: Setting) -> None:
    """Measure and write."""
    model = model_of(setting)
    theirs = _same_weights(model)
    for batch_sizes, context_len in [((2,), 64)] if setting.rehearse else POINTS:
        if setting.time_is_up:
            return
        fitting = largest(setting, model, tuple(2 * size for size in batch_sizes), context_len)  # two caches
        if not fitting:
            continue
        batch_size = fitting[0] // 2
        own_s = _own_step_s(model, batch_size, context_len, 4 if setting.rehearse else 32)
        row: dict[str, str | int | float | bool | None] = {
            "batch_size": batch_size, "context_len": context_len, "magicdec_step_s": own_s,
        }  # fmt: skip
        for name, compiled in (("eager", False), ("compiled", True)):
            if setting.time_is_up or (compiled and setting.rehearse):
                continue
            try:
                row[f"transformers_{name}_step_s"] = _their_step_s(setting, theirs, batch_size, context_len, compiled=compiled)
            except Exception as error:  # such as too little memory: the row says so
                row[f"transformers_{name}_error"] = f"{type(error).__name__}: {error}"[:200]
        setting.write("transformers", row)


@torch.inference_mode()
def _own_step_s(model: Transformer, batch_size: int, context_len: int, steps: int) -> float:
    batch = random_batch(model, batch_size, context_len, 0, steps)
    for _ in range(2):
        batch.rewind()
        log = RoundLog(list(decode(batch)))
    return log.decode_s / len(log.rounds)


def _same_weights(model: Transformer) -> torch.nn.Module:
    """transformers' model of the same shape that shares our weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = model.config
    theirs = LlamaConfig(
        hidden_size=config.d_model,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.d_ff,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_context_len,
        tie_word_embeddings=config.tied_embeddings,
    )
    with torch.device("meta"):
        made = LlamaForCausalLM(theirs).eval()
    made.load_state_dict(model.state_dict(), strict=False, assign=True)
    if config.tied_embeddings:
        made.tie_weights()
    made.model.rotary_emb = type(made.model.rotary_emb)(theirs).to(model.device)
    return made


@torch.inference_mode()
def _their_step_s(setting: Setting, model: torch.nn.Module, batch_size: int, context_len: int, *, compiled: bool) -> float:
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=context_len + 64)
    position = torch.full((1,), context_len, device=setting.device)
    tokens = torch.ones(batch_size, 1, dtype=torch.long, device=setting.device)

    def call() -> Tensor:
        logits: Tensor = model(
            tokens, past_key_values=cache, position_ids=position.expand(batch_size, 1), cache_position=position, use_cache=True
        ).logits
        return logits.argmax(-1)

    step: Callable[[], Tensor] = torch.compile(call, mode="reduce-overhead", fullgraph=False) if compiled else call
    return median_time_s(step, repeats=8, warm_up=3, device=setting.device)
