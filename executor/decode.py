"""The decoding loops: plain and speculative, over batches of unequal prompts, with acceptance and stop per row.

Shapes: B batch, S slots, T query tokens, G draft tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from costmodel.errors import bad
from executor.attention import SlotAttention
from executor.drafters import Drafter, prefill
from executor.kv_cache import KvCache
from executor.transformer import Transformer
from executor.verify import count_accepted, count_emitted

Progress = Callable[[int], object]


@dataclass
class Trace:
    """What a decoding run did, round by round; a plain step is a round without a draft.

    Attributes:
        draft_s, verify_s, round_s: Time of each round's draft, of the target's pass, and of all of it. [s]
        emitted: Tokens each round emitted, over all rows.
        active_rows: Rows that were still running in it.
        drafted_by_position, accepted_by_position: How often draft position i was reached, every one before it accepted,
            and how often it was accepted then.
        row_finish_s: When each row emitted its last token, from the start of decoding. [s]
        row_tokens: Tokens each row emitted.
    """

    draft_s: list[float] = field(default_factory=list)
    verify_s: list[float] = field(default_factory=list)
    round_s: list[float] = field(default_factory=list)
    emitted: list[int] = field(default_factory=list)
    active_rows: list[int] = field(default_factory=list)
    drafted_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    row_finish_s: list[float] = field(default_factory=list)
    row_tokens: list[int] = field(default_factory=list)

    @property
    def decode_s(self) -> float:
        """All rounds together. [s]"""
        return sum(self.round_s)

    @property
    def tpot_s(self) -> float:
        """Seconds per output token, averaged over the rows, each up to its own last token. [s]"""
        return sum(s / n for s, n in zip(self.row_finish_s, self.row_tokens, strict=True)) / len(self.row_tokens)

    @property
    def throughput_tokens_per_s(self) -> float:
        """All rows together, while all of them run. [tokens/s]"""
        full = [i for i, active in enumerate(self.active_rows) if active == self.active_rows[0]]
        return sum(self.emitted[i] for i in full) / sum(self.round_s[i] for i in full)

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per verification and row, bonus token included. [tokens]"""
        rounds = self.drafted_by_position[0] if self.drafted_by_position else 0
        return 1.0 + sum(self.accepted_by_position) / rounds if rounds else 1.0

    @property
    def acceptance_rate(self) -> float | None:
        """Of draft tokens whose predecessors were all accepted, the accepted share; None if nothing was drafted. [0-1]"""
        reached = sum(self.drafted_by_position)
        return sum(self.accepted_by_position) / reached if reached else None


class Batch:
    """Prompts being continued: their tokens, their KV cache and where each row stands.

    Args:
        model: The target.
        prompts: Token ids of each row's prompt, none empty.
        max_new_tokens: Tokens each row may emit. [tokens]
        gamma: Most draft tokens per round, for which the cache keeps room. [tokens]
    """

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, gamma: int = 0):
        self.model, self.prompts, self.max_new_tokens = model, prompts, max_new_tokens
        self.prompt_lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        capacity = int(self.prompt_lengths_B.max()) + max_new_tokens + gamma + 1
        try:
            self.cache = KvCache(model.config, len(prompts), capacity, model.device, model.dtype)
        except (MemoryError, RuntimeError) as error:
            needed = len(prompts) * capacity * model.config.kv_bytes_per_token
            expected = f"a KV cache that can be allocated: fewer or shorter prompts than {len(prompts)} of {capacity} tokens"
            raise bad("memory", "", expected, f"{needed / 1e9:.1f} GB needed ({str(error).splitlines()[0]})") from None
        self.tokens_BS = torch.zeros((len(prompts), capacity + 1), dtype=torch.long, device=model.device)
        self.lengths_B = self.prompt_lengths_B.clone()

    @torch.inference_mode()
    def prefill(self, progress: Progress = lambda row: None) -> None:
        """Read every prompt but its last token, which the first round feeds, into the cache; call `progress` after each row."""
        for row, prompt in enumerate(self.prompts):
            tokens_S = torch.tensor(prompt, device=self.model.device)
            self.tokens_BS[row, : len(prompt)] = tokens_S
            if len(prompt) > 1:
                prefill(self.model, self.cache, row, tokens_S[:-1])
            progress(row)

    def rewind(self) -> None:
        """Back to the end of the prompts, which need not be read again."""
        self.lengths_B = self.prompt_lengths_B.clone()

    def outputs(self) -> list[list[int]]:
        """The tokens each row has emitted."""
        starts, stops = self.prompt_lengths_B.tolist(), self.lengths_B.tolist()
        return [self.tokens_BS[row, a:b].tolist() for row, (a, b) in enumerate(zip(starts, stops, strict=True))]


@torch.inference_mode()
def decode(
    batch: Batch,
    *,
    drafter: Drafter | None = None,
    gamma: int = 0,
    stop_tokens: Sequence[int] = (),
    progress: Progress = lambda emitted: None,
) -> Trace:
    """Continue every row greedily, until it emits a stop token or reaches its limit.

    Without a drafter this is plain decoding: a round drafts nothing and emits one token. With one, the output is the
    same: every emitted token is the target's own choice.

    Args:
        batch: The rows, prompts already read.
        drafter: Who proposes tokens; None for plain decoding.
        gamma: Tokens proposed per round. [tokens]
        stop_tokens: Ids that end a row.
        progress: Called after each round with the tokens it emitted.
    """
    model, device = batch.model, batch.model.device
    stops = torch.tensor(list(stop_tokens), dtype=torch.long, device=device)
    remaining_B = torch.full_like(batch.lengths_B, batch.max_new_tokens)
    rows_B1 = torch.arange(len(remaining_B), device=device)[:, None]
    steps_T = torch.arange(gamma + 1, device=device)
    trace = Trace([], [], [], [], [], [0] * gamma, [0] * gamma, [0.0] * len(remaining_B), [0] * len(remaining_B))
    began = _now(device)
    while bool((remaining_B > 0).any()):
        started = _now(device)
        active_B = remaining_B > 0
        positions_BT = (batch.lengths_B - 1)[:, None] + steps_T
        input_BT = batch.tokens_BS[rows_B1, positions_BT[:, :1]]
        draft_BG = input_BT[:, :0]
        if drafter is not None:
            draft_BG = drafter.draft(batch.tokens_BS, batch.lengths_B, gamma)
            input_BT = torch.cat([input_BT, draft_BG], dim=1)
        drafted = _now(device)
        attend = SlotAttention(batch.cache, batch.lengths_B - 1, gamma + 1, model.config.sliding_window)
        known_BT = positions_BT.clamp(max=model.config.max_context_len - 1)  # what lies beyond is never emitted
        logits_BTV = model.logits(model(input_BT, known_BT, attend))
        if not trace.round_s and not bool(logits_BTV.isfinite().all()):
            raise bad(model.config.name, "", "finite logits", "inf or nan: the weights are damaged or overflow this type")
        target_BT = logits_BTV.argmax(-1)
        verified = _now(device)
        accepted_B = count_accepted(draft_BG, target_BT)
        emitted_B, ends_B = count_emitted(target_BT, accepted_B, remaining_B, stops)
        batch.tokens_BS[rows_B1, positions_BT + 1] = target_BT
        new_lengths_B = batch.lengths_B + emitted_B
        if drafter is not None:
            drafter.observe(batch.lengths_B, new_lengths_B)
        batch.lengths_B = new_lengths_B
        remaining_B = torch.where(ends_B, 0, remaining_B - emitted_B)
        finished = _now(device)
        _record(trace, active_B, accepted_B, emitted_B, remaining_B, gamma, finished - began)
        trace.draft_s.append(drafted - started)
        trace.verify_s.append(verified - drafted)
        trace.round_s.append(finished - started)
        progress(trace.emitted[-1])
    return trace


def _record(
    trace: Trace, active_B: Tensor, accepted_B: Tensor, emitted_B: Tensor, remaining_B: Tensor, gamma: int, elapsed_s: float
) -> None:
    rows = zip(active_B.tolist(), accepted_B.tolist(), emitted_B.tolist(), remaining_B.tolist(), strict=True)
    for row, (active, accepted, emitted, remaining) in enumerate(rows):
        if not active:
            continue
        for position in range(min(accepted + 1, gamma)):
            trace.drafted_by_position[position] += 1
            trace.accepted_by_position[position] += position < accepted
        trace.row_tokens[row] += emitted
        if remaining == 0:
            trace.row_finish_s[row] = elapsed_s
    trace.emitted.append(int(emitted_B[active_B].sum()))
    trace.active_rows.append(int(active_B.sum()))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
