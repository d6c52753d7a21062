"""The decoding loop: draft, verify, emit, refill. Speculative and autoregressive decoding are the same loop.

Start reading here. A round drafts gamma tokens per row, runs the target once over them and emits those that the target
confirms, plus one token of its own. So the output is the target's: the same tokens in greedy decoding, the same distribution
in sampling. Without a drafter a round is one autoregressive step.

Shapes: B batch, S slots, T = G + 1 tokens of the target's pass, G draft tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from .drafting.draft_policy import AUTOREGRESSIVE, DraftPolicy
from .engine.batch import Batch
from .engine.round_log import Completion, RoundRecord
from .engine.verification import count_emitted
from .kv.attention import SlotAttention
from .system.device import elapsed_s, record_time, to_device


@torch.inference_mode()
def decode(batch: Batch, policy: DraftPolicy = AUTOREGRESSIVE, *, shrink: bool = False) -> Iterator[RoundRecord]:
    """Continue all requests of a batch until each emits a stop token or stop string or reaches its limit.

    A finished row is refilled with the next waiting request after its round has been yielded, so the caller can store the
    completion before the prefill starts. The caller may stop iterating at any time.

    Args:
        batch: Rows with their first requests prefilled.
        policy: Chooses the drafter and gamma of each round.
        shrink: Compact the batch once half of its rows are done and no request waits; it cannot be rewound afterwards.

    Yields:
        Each round, with the requests that finished in it.

    Raises:
        InputError: The model returns infinite or NaN logits.
    """
    device, settings, config = batch.model.device, batch.settings, batch.model.config
    stop_tokens = torch.tensor(settings.stop_tokens, dtype=torch.long)
    row_started_s = [time.perf_counter()] * len(batch)
    running_B, active, context_tokens = _running(batch)
    while active:
        round_started_s, draft_started = time.perf_counter(), record_time(device)

        # 1. Draft: the input of the target's pass is each row's last committed token and gamma draft tokens.
        context_len = context_tokens / active
        drafter, gamma = policy.select(active, context_len)
        positions_BT = batch.lengths_B[:, None] + torch.arange(-1, gamma)
        next_positions_BT = positions_BT + 1
        input_BT = to_device(batch.tokens_BS.gather(1, positions_BT[:, :1]), device)
        draft_BG, draft_probs_BGV = input_BT[:, :0], None
        if drafter is not None:
            draft_BG, draft_probs_BGV = drafter.draft(batch.tokens_BS, batch.lengths_B, gamma, batch.sampler)
            draft_BG = to_device(draft_BG, device)
            input_BT = torch.cat([input_BT, draft_BG], dim=1)
        verify_started = record_time(device)

        # 2. Verify: one pass of the target. It also overwrites the KV entries of the draft with exact ones.
        query_hook = drafter.query_hook if drafter is not None else None
        attend = SlotAttention(batch.cache, positions_BT, config.sliding_window, query_hook=query_hook)
        if attend.stop > config.max_context_len:  # tokens beyond the last position are never emitted
            positions_BT = positions_BT.clamp(max=config.max_context_len - 1)
        forward = batch.runner(input_BT, positions_BT, attend)
        accepted_B, tokens_BT = batch.sampler.verify(draft_BG, draft_probs_BGV, forward, next_positions_BT)
        verified = record_time(device)
        accepted_B, tokens_BT = _to_host(accepted_B, tokens_BT)

        # 3. Emit: the accepted tokens and the target's own, cut at stop tokens, stop strings and limits.
        emitted_B, ends_B = count_emitted(tokens_BT, accepted_B, batch.remaining_B, stop_tokens)
        batch.tokens_BS.scatter_(1, next_positions_BT, tokens_BT)
        if settings.stop_strings is not None:
            emitted_B, ends_B = settings.stop_strings.truncate(
                batch.row_requests(), batch.tokens_BS, batch.lengths_B, emitted_B, ends_B
            )
        new_lengths_B = batch.lengths_B + emitted_B
        if drafter is not None:
            drafter.observe(batch.lengths_B, new_lengths_B)
        batch.lengths_B = new_lengths_B
        batch.remaining_B = batch.remaining_B - emitted_B
        emitted = int(emitted_B.sum())
        ended = (ends_B & running_B).nonzero()[:, 0].tolist()
        rows_by_accepted = _count_rows(accepted_B, running_B, gamma)
        ended_s = time.perf_counter()

        # 4. Report, and let the caller store what is finished.
        yield RoundRecord(
            draft_s=elapsed_s(draft_started, verify_started),
            verify_s=elapsed_s(verify_started, verified),
            round_s=ended_s - round_started_s,
            emitted=emitted,
            active=active,
            gamma=gamma,
            context_len=context_len,
            rows_by_accepted=rows_by_accepted,
            completions=tuple(
                Completion(batch.request_indices[row], batch.finish(row), ended_s - row_started_s[row]) for row in ended
            ),
        )

        # 5. Refill the rows that ended, or drop them if no request waits.
        context_tokens += emitted
        for row in ended:
            if batch.waiting:
                policy.reset(row, batch.admit(row).kv_budget)
                row_started_s[row] = time.perf_counter()
        if ended:
            running_B, active, context_tokens = _running(batch)
        if ended and shrink and not batch.waiting and 0 < active <= len(batch) // 2:
            rows_B = running_B.nonzero()[:, 0]
            running_B = running_B[rows_B]
            policy.compact(rows_B)
            batch.compact(rows_B)
            row_started_s = [row_started_s[row] for row in rows_B.tolist()]


def _running(batch: Batch) -> tuple[Tensor, int, int]:
    """Which rows are still running, how many, and their context tokens in total."""
    running_B = batch.remaining_B > 0
    return running_B, int(running_B.sum()), int((batch.lengths_B * running_B).sum())


def _count_rows(accepted_B: Tensor, running_B: Tensor, gamma: int) -> tuple[int, ...]:
    """Running rows that accepted exactly 0, 1, ..., gamma draft tokens. Plain Python: faster than tensors for so few rows."""
    counts = [0] * (gamma + 1)
    for accepted, running in zip(accepted_B.tolist(), running_B.tolist(), strict=True):
        counts[accepted] += running
    return tuple(counts)


def _to_host(accepted_B: Tensor, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Copy both to the host in one transfer: the only time in a round that the host waits for the device."""
    if tokens_BT.device.type == "cpu":
        return accepted_B, tokens_BT
    both = torch.cat([accepted_B[:, None], tokens_BT], dim=1).cpu()
    return both[:, 0], both[:, 1:]
