"""Speculative decoding of one sequence: the target drafts for itself with a sparse KV cache. Greedy."""

import torch

from magicdec.executor.engine.prefill import prefill
from magicdec.executor.kv.attention import SlotAttention
from magicdec.executor.kv.cache import KvCache
from magicdec.executor.kv.selection import streaming_llm_slots
from magicdec.executor.model.transformer import Transformer


def next_tokens(model: Transformer, cache: KvCache, tokens: list[int], position: int, slot: int) -> list[int]:
    """One forward pass: the argmax token after each of `tokens`, whose keys and values go to `slot` and up."""
    steps = torch.arange(len(tokens))[None]
    attend = SlotAttention(cache, slot + steps)  # each token sees the slots up to its own
    hidden = model(torch.tensor([tokens]), position + steps, attend)
    return model.logits(hidden)[0].argmax(-1).tolist()


@torch.inference_mode()
def generate(model: Transformer, prompt: list[int], new_tokens: int, *, gamma: int, kv_budget: int) -> list[int]:
    """The next `new_tokens` tokens, the same as without speculation. The prompt has at least two tokens."""

    def make_cache(capacity: int) -> KvCache:
        return KvCache(model.config, 1, capacity, model.device, model.dtype)

    cache = make_cache(len(prompt) + new_tokens + gamma + 1)
    prefill(model, cache, 0, torch.tensor(prompt[:-1]))  # all but the last token, which the first round feeds
    sparse = make_cache(kv_budget + gamma)
    tokens = list(prompt)

    while len(tokens) < len(prompt) + new_tokens:
        committed = len(tokens) - 1  # entries in the cache; the last token gets its entry in this round

        # 1. Draft: gamma steps that read at most kv_budget entries each, however long the context is.
        kept = streaming_llm_slots(committed, kv_budget, model.device)
        cache.copy_row_to(sparse, 0, kept)  # keys keep the rotation of their absolute positions
        draft: list[int] = []
        for step in range(gamma):
            last = [*tokens, *draft][-1]
            draft += next_tokens(model, sparse, [last], committed + step, len(kept) + step)

        # 2. Verify: one pass over gamma + 1 tokens reads the whole cache once, as a single decoding step does.
        target = next_tokens(model, cache, [tokens[-1], *draft], committed, committed)

        # 3. Accept the draft up to the first token that the target would not have chosen; its own token comes after it.
        accepted = 0
        while accepted < gamma and draft[accepted] == target[accepted]:
            accepted += 1
        tokens += target[: accepted + 1]
        # Entries of rejected tokens stay in the cache; the next round overwrites them before anything reads them.

    return tokens[len(prompt) :][:new_tokens]
