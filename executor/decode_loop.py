"""The decoding loop: plain and speculative, over rows of unequal prompts, with acceptance and stop per row.

Shapes: B batch, S slots, T query tokens, G draft tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .drafting.policy import PLAIN, Steer
from .engine.batch import Batch, Progress
from .engine.round_log import Trace
from .engine.stop_strings import StopTexts
from .engine.verification import count_emitted
from .kv.attention import SlotAttention
from .system.device import elapsed_s, record_time, to_device

Finished = Callable[[int, list[int]], object]  # told of a prompt's place and of its output


@torch.inference_mode()
def decode(
    batch: Batch,
    *,
    steer: Steer = PLAIN,
    stop_tokens: Sequence[int] = (),
    stop_texts: StopTexts | None = None,
    shrink: bool = False,
    progress: Progress = lambda emitted: None,
    finished: Finished = lambda place, output: None,
) -> Trace:
    """Continue every prompt until it emits a stop token or a stop text or reaches its limit.

    A plain round drafts nothing and emits one token a row. What speculation emits has the same law, and is the same in
    greedy decoding: every emitted token is the target's own choice. A row that is done is taken by the next waiting prompt.

    Args:
        batch: The rows, their first prompts already read.
        steer: Who proposes tokens in a round, and how many.
        stop_tokens: Ids that end a row.
        stop_texts: Heeds the stop texts of prompts; None to ignore them.
        shrink: Drop rows that are done, once they are half of all and nobody waits; the batch cannot be rewound then.
        progress: Called after each round with the tokens it emitted.
        finished: Called for each prompt when it is done.
    """
    model, device = batch.model, batch.model.device
    stops = torch.tensor(list(stop_tokens), dtype=torch.long)
    trace = Trace()
    began = time.perf_counter()
    row_began_s = [0.0] * len(batch)
    done: dict[int, tuple[float, int]] = {}  # by place of the prompt: time and tokens
    running_B, active, known = _standing(batch)
    while active:
        started, start = time.perf_counter(), record_time(device)
        context = known / active
        drafter, gamma = steer.pick(active, context)
        positions_BT = batch.lengths_B[:, None] + torch.arange(-1, gamma)
        next_BT = positions_BT + 1
        input_BT = to_device(batch.tokens_BS.gather(1, positions_BT[:, :1]), device)
        draft_BG, draft_probs_BGV = input_BT[:, :0], None
        if drafter is not None:
            draft_BG, draft_probs_BGV = drafter.draft(batch.tokens_BS, batch.lengths_B, gamma, batch.sampler)
            draft_BG = to_device(draft_BG, device)
            input_BT = torch.cat([input_BT, draft_BG], dim=1)
        drafted = record_time(device)
        watch = drafter.watch if drafter is not None else None
        attend = SlotAttention(batch.cache, positions_BT, model.config.sliding_window, watch=watch)
        if attend.stop > model.config.max_context_len:  # what lies beyond is never emitted
            positions_BT = positions_BT.clamp(max=model.config.max_context_len - 1)
        answer = batch.passes(input_BT, positions_BT, attend)
        accepted_B, tokens_BT = batch.sampler.verify(draft_BG, draft_probs_BGV, answer, next_BT)
        verified = record_time(device)
        accepted_B, tokens_BT = _fetched(accepted_B, tokens_BT)
        emitted_B, ends_B = count_emitted(tokens_BT, accepted_B, batch.remaining_B, stops)
        batch.tokens_BS.scatter_(1, next_BT, tokens_BT)
        if stop_texts is not None:
            emitted_B, ends_B = stop_texts.cut(batch, emitted_B, ends_B)
        new_lengths_B = batch.lengths_B + emitted_B
        if drafter is not None:
            drafter.observe(batch.lengths_B, new_lengths_B)
        batch.lengths_B = new_lengths_B
        batch.remaining_B = batch.remaining_B - emitted_B
        trace.count(accepted_B, running_B, gamma)
        ended = (ends_B & running_B).nonzero()[:, 0].tolist()
        emitted = int(emitted_B.sum())
        ended_at = time.perf_counter()
        trace.add_round(
            draft_s=elapsed_s(start, drafted),
            verify_s=elapsed_s(drafted, verified),
            round_s=ended_at - started,
            emitted=emitted,
            active=active,
            gamma=gamma,
            context=context,
        )
        progress(emitted)
        known += emitted
        for row in ended:
            place, output = batch.places[row], batch.finish(row)
            done[place] = (ended_at - began - row_began_s[row], len(output))
            finished(place, output)
            if batch.waiting:
                prompt = batch.take(row)
                steer.reset(row, prompt.kv_budget)
                row_began_s[row] = time.perf_counter() - began
        if ended:
            running_B, active, known = _standing(batch)
        if ended and shrink and not batch.waiting and 0 < active <= len(batch) // 2:
            rows_B = running_B.nonzero()[:, 0]
            running_B = running_B[rows_B]
            steer.keep(rows_B)
            batch.keep(rows_B)
            row_began_s = [row_began_s[row] for row in rows_B.tolist()]
    trace.row_finish_s, trace.row_tokens = ([done[place][part] for place in sorted(done)] for part in (0, 1))
    return trace


def _standing(batch: Batch) -> tuple[Tensor, int, int]:
    """Which rows still run, how many they are, and the tokens they know in all."""
    running_B = batch.remaining_B > 0
    return running_B, int(running_B.sum()), int((batch.lengths_B * running_B).sum())


def _fetched(accepted_B: Tensor, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the host: here it waits for the device, once a round."""
    if tokens_BT.device.type == "cpu":
        return accepted_B, tokens_BT
    both = torch.cat([accepted_B[:, None], tokens_BT], dim=1).cpu()
    return both[:, 0], both[:, 1:]
