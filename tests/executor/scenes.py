"""A target, a draft model, prompts of unequal length, and the target's own continuations of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from decoding import decode_one_batch, requests_of
from tiny_models import TINY, continue_without_cache, cut_after_stop, perturbed, random_prompts, tiny_model

from magicdec.costmodel.plans.strategy import Strategy
from magicdec.executor.engine.round_log import RoundLog
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.model.transformer import Transformer

PROMPT_LENGTHS = (1, 7, 40, 64)
NEW_TOKENS = 23  # a multiple of no gamma + 1 tested but that of gamma = 22


@dataclass(frozen=True)
class Scene:
    """Models and prompts, and the target's continuations of them."""

    target: Transformer
    draft: Transformer
    prompts: list[list[int]]
    continuations: list[list[int]]  # longer than any output, because drafts look ahead
    stop_tokens: tuple[int, int]

    def expected(self, stop_tokens: Sequence[int] = (), new_tokens: int = NEW_TOKENS) -> list[list[int]]:
        return [cut_after_stop(tokens[:new_tokens], stop_tokens) for tokens in self.continuations]


@cache
def scene(num_kv_heads: int) -> Scene:
    target = tiny_model(num_kv_heads=num_kv_heads)
    prompts = random_prompts(PROMPT_LENGTHS)
    continuations = [continue_without_cache(target, prompt, NEW_TOKENS + 12) for prompt in prompts]
    return Scene(target, perturbed(target, 0.06), prompts, continuations, stops_at_different_places(continuations))


def stops_at_different_places(continuations: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Two tokens that end some rows early, at different places, and let another reach its limit."""
    for pair in combinations(range(TINY.vocab_size), 2):
        lengths = [len(cut_after_stop(tokens[:NEW_TOKENS], pair)) for tokens in continuations]
        early = {length for length in lengths if length < NEW_TOKENS}
        if len(early) >= 2 and min(early) > 2 and NEW_TOKENS in lengths:
            return pair
    raise AssertionError("no two tokens stop these continuations at different places: choose another seed")


def run_alone(
    target: Transformer,
    draft: Transformer | None,
    prompts: Sequence[Sequence[int]],
    strategy: Strategy,
    stop_tokens: Sequence[int] = (),
    new_tokens: int = NEW_TOKENS,
) -> tuple[list[list[int]], RoundLog]:
    """A strategy on a fresh batch, whose cache no autoregressive decoding has filled before."""
    log = decode_one_batch(target, draft, requests_of(prompts), strategy, GenerationSettings(new_tokens, tuple(stop_tokens)))
    return log.outputs, log
