"""Measure how often a model accepts its own sparse or compressed drafts."""

from __future__ import annotations

from collections.abc import Sequence

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.plans.strategy import COMPRESSED_DTYPES, MAX_GAMMA, KvPolicy, Strategy
from magicdec.executor.generate import check_runnable
from magicdec.executor.measuring.acceptance import AcceptanceGrid, measure_acceptance

from ..inputs.checks import one_of, whole_number, whole_numbers
from ..inputs.names import REFERENCE, find_model
from ..render.progress import progress_bar
from ..results.acceptance import AcceptanceResult, CurvePoint
from ..running.checkpoints import load_checkpoint, tokenize_text

MEASURABLE_POLICIES: tuple[KvPolicy, ...] = ("streaming_llm", "snapkv", "topk", "quest", "full")


def acceptance(
    model_dir: str = REFERENCE,
    *,
    text: str | None = None,
    kv_policy: str | None = None,
    kv_dtype: str | None = None,
    kv_budgets: int | Sequence[int] = (64, 128, 256, 512, 1024),
    context_lens: int | Sequence[int] = (1024, 4096, 8192),
    rows: int = 8,
    gamma: int = 4,
    max_new_tokens: int = 96,
) -> AcceptanceResult:
    """Measure acceptance over budgets and contexts where the model continues real text greedily.

    Args:
        model_dir: Checkpoint directory, or `reference`.
        text: File of real text to continue; None for held-out standard library text.
        kv_policy: What the draft reads; None for `streaming_llm`, or `full` with `kv_dtype`.
        kv_dtype: Type of the KV entries it reads, all of them: int8, int4 or fp8.
        kv_budgets: Budgets to measure. [tokens]
        context_lens: Prompt lengths to measure at. [tokens]
        rows: Places in the text, decoded together.
        gamma: Draft tokens per round. [tokens]
        max_new_tokens: New tokens at each place. [tokens]

    Raises:
        InputError: A file is wrong, the text is too short, or the model supports too few tokens.
    """
    dtype = one_of("kv_dtype", kv_dtype, COMPRESSED_DTYPES)
    policy = one_of("kv_policy", kv_policy, MEASURABLE_POLICIES) or ("full" if dtype else "streaming_llm")
    if dtype and policy != "full":
        raise bad("kv_dtype", "", "nothing beside a sparse `kv_policy`: a draft reads fewer KV entries or compressed ones", dtype)
    if policy == "full" and not dtype:
        raise bad("kv_policy", "", "a sparse policy or a `kv_dtype`: else a self draft costs what the target does", policy)
    if whole_number("gamma", gamma) > MAX_GAMMA:
        raise bad("gamma", "", f"1 to {MAX_GAMMA} draft tokens per round", gamma)
    grid = AcceptanceGrid(
        kv_budgets=whole_numbers("kv_budgets", kv_budgets),
        context_lens=whole_numbers("context_lens", context_lens),
        rows=whole_number("rows", rows),
        gamma=whole_number("gamma", gamma),
        max_new_tokens=whole_number("max_new_tokens", max_new_tokens),
        kv_policy=policy,
        kv_dtype=dtype,
    )
    found = find_model(model_dir, "model_dir")
    loaded = load_checkpoint(model_dir)
    task, tokens = tokenize_text(loaded.tokenizer, text)
    longest = max(grid.context_lens) + grid.max_new_tokens
    if longest > found.config.max_context_len:
        expected = f"at most {found.config.max_context_len:,} tokens, which {model_dir} supports"
        raise bad("context_lens", "", expected, f"{longest:,} with the new tokens")
    if len(tokens) < max(grid.context_lens):
        raise bad(text or "text", "", f"at least {max(grid.context_lens)} tokens, the longest context", f"{len(tokens)} tokens")
    check_runnable(Strategy("self", policy, None if policy == "full" else 1, 1, None, dtype), loaded.target, None)
    points = []
    with progress_bar(grid.num_points, "measuring acceptance", "point") as measured:
        for point in measure_acceptance(loaded.target, tokens, grid):
            rate, error = round(point.acceptance_rate, 4), round(point.standard_error, 4)
            points.append(CurvePoint(point.context_len, rate, error, point.kv_budget))
            measured(1)
    places = f"{grid.rows} places, {grid.max_new_tokens} new tokens each, gamma {grid.gamma}, greedy"
    return AcceptanceResult(found.config.name, task, policy, dtype, f"magicdec acceptance: {places}", tuple(points))
