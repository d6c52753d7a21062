"""Speculative and autoregressive decoding of the same prompts, in turns: speed, and where the outputs differ.

Shapes: B batch, T query tokens, V vocabulary, R query rows of a KV head, K KV heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from magicdec.costmodel.plans.strategy import Strategy

from ..decode_loop import decode
from ..drafting.draft_policy import AUTOREGRESSIVE, DraftPolicy, FixedPolicy
from ..drafting.drafters import ModelDrafter
from ..drafting.factory import make_drafter, reset_all
from ..drafting.kv_views import KvView
from ..engine.batch import Batch
from ..engine.round_log import RoundLog, RoundRecord
from ..kv.gathered_attention import GatheredAttention
from ..model.transformer import Transformer
from .timing import median_time_s

OnRound = Callable[[RoundRecord], object]


@dataclass(frozen=True)
class Comparison:
    """A batch that was decoded both ways.

    Attributes:
        log: Speculative run with the median TPOT.
        autoregressive: Autoregressive run with the median TPOT.
        select_step_s: Selecting KV entries for one draft step, timed alone; None if draft steps select nothing. [s]
    """

    log: RoundLog
    autoregressive: RoundLog
    select_step_s: float | None


def compare(
    batch: Batch,
    draft: Transformer | None,
    strategy: Strategy,
    *,
    repeats: int = 1,
    on_round: OnRound | None = None,
    between: Callable[[], object] = lambda: None,
) -> Comparison:
    """Decode a batch autoregressively and with a strategy, in turns, so that other load on the machine affects both alike.

    On a GPU one more turn runs first and is not counted: it compiles kernels and captures CUDA graphs.

    Args:
        batch: Prefilled, with a row for every request.
        draft: The draft model, if the strategy names one.
        strategy: What to compare with autoregressive decoding.
        repeats: Turns.
        on_round: Called after each round of a counted turn.
        between: Called before, between and after the counted parts, twice a turn and once more.

    Raises:
        InputError: Out of memory, a draft model with too short a context, or infinite or NaN logits.
    """
    drafter = make_drafter(strategy, batch, draft)
    logs: list[RoundLog] = []
    autoregressive_logs: list[RoundLog] = []
    warm_up = 1 if batch.model.device.type == "cuda" else 0
    for turn in range(warm_up + repeats):
        told = on_round if turn >= warm_up else None
        pause = between if turn >= warm_up else _nothing
        pause()
        autoregressive_logs.append(_decode_again(batch, AUTOREGRESSIVE, told))
        pause()
        if drafter is not None:
            reset_all(drafter, batch)
        logs.append(_decode_again(batch, FixedPolicy(drafter, strategy.gamma), told))
    between()
    select_s = select_step_s(drafter.view, batch.lengths_B) if isinstance(drafter, ModelDrafter) else None
    return Comparison(_median(logs[warm_up:]), _median(autoregressive_logs[warm_up:]), select_s)


def _nothing() -> None:
    """Pause for nothing."""


def _decode_again(batch: Batch, policy: DraftPolicy, on_round: OnRound | None) -> RoundLog:
    """Rewind a batch and decode it to the end."""
    batch.rewind()
    rounds = []
    with batch.memory_explained():
        for one in decode(batch, policy):
            rounds.append(one)
            if on_round is not None:
                on_round(one)
    return RoundLog(rounds)


def _median(logs: Sequence[RoundLog]) -> RoundLog:
    return sorted(logs, key=lambda log: log.tpot_s)[len(logs) // 2]


@torch.inference_mode()
def select_step_s(view: KvView, lengths_B: Tensor) -> float | None:
    """Time to select the entries of one draft step in all layers, for random queries. [s]

    Args:
        view: The drafter's KV view.
        lengths_B: Committed tokens of each row. [tokens]

    Returns:
        None if draft steps select nothing.
    """
    attend = view.attend((lengths_B - 1)[:, None])
    if not isinstance(attend, GatheredAttention):
        return None
    config, keys = view.model.config, view.cache.k_LBKSH
    group = config.num_heads // config.num_kv_heads
    q_BKRH = torch.randn(len(lengths_B), config.num_kv_heads, group, config.head_dim, device=keys.device).to(keys.dtype)
    layers = range(config.num_layers)
    return median_time_s(lambda: [attend.select(layer, q_BKRH) for layer in layers], repeats=5, device=keys.device)


def first_difference(outputs: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> tuple[int, int] | None:
    """(row, position) of the first token that differs, or None. Both must have the same number of rows."""
    for row, (found, wanted) in enumerate(zip(outputs, expected, strict=True)):
        for position, (a, b) in enumerate(zip(found, wanted, strict=False)):
            if a != b:
                return row, position
        if len(found) != len(wanted):
            return row, min(len(found), len(wanted))
    return None


@torch.inference_mode()
def log_probability_gap(model: Transformer, tokens: Sequence[int], chosen: int) -> float:
    """How much less likely than the argmax a token is. [nats]

    Args:
        model: The target.
        tokens: The context.
        chosen: The token that follows it.

    Returns:
        Log-probability of the argmax minus that of `chosen`; 0 for the argmax itself.
    """
    tokens_BT = torch.tensor([list(tokens)], device=model.device)
    positions_BT = torch.arange(len(tokens), device=model.device)[None]
    log_probs_V = model.logits(model(tokens_BT, positions_BT)[:, -1])[0].double().log_softmax(-1)
    return float(log_probs_V.max() - log_probs_V[chosen])
