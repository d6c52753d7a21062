"""Where the picture changes for a model and a machine: what `regimes` prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.base.units import format_tokens
from magicdec.costmodel.planning.regimes import (
    LARGE_BATCH,
    SMALL_BATCH,
    admissible_budgets,
    bound_map,
    critical_context_len,
    crossover_batch_size,
    minimum_acceptance,
)
from magicdec.costmodel.planning.search import GAMMAS, KV_BUDGETS
from magicdec.costmodel.speculation.acceptance import find_curve
from magicdec.costmodel.speculation.drafts import Draft

from . import text
from .api import Question, ask
from .names import find_draft

BATCH_SIZES = (1, 4, 16, 64, 256)
CONTEXT_LENS = (1000, 4000, 16000, 32000, 64000, 128000)


def regimes_document(
    *,
    batch_size: int,
    context_len: int,
    kv_policy: str | None,
    kv_budget: int,
    small_draft: str | None,
    speedup: float,
    **asked: Any,
) -> tuple[dict[str, Any], str]:
    """Ridge points, bounds, critical length, the acceptance each budget needs, and when a self draft overtakes a small one."""
    if not math.isfinite(speedup):
        raise bad("--speedup", "", "a ratio of at least 1", speedup)
    question = ask(**asked)
    draft = find_draft("self", kv_policy, question.deployment, kv_budget)
    dtypes = [name for name in question.deployment.hardware.peak.flop_per_s if name in ("bfloat16", "fp8", "float32")]
    critical = critical_context_len(question.deployment, draft, gammas=GAMMAS, kv_budget=kv_budget, **_acceptance(question, draft))
    bounds = bound_map(question.deployment, np.array(BATCH_SIZES), np.array(CONTEXT_LENS))
    document = {
        "ridge_points_flop_per_byte": {dtype: question.deployment.hardware.ridge_point(dtype) for dtype in dtypes},
        "critical_context_len": critical,
        "bounds": {
            batch: dict(zip(CONTEXT_LENS, row.tolist(), strict=True)) for batch, row in zip(BATCH_SIZES, bounds, strict=True)
        },
        "wanted_speedup": speedup,
        "budgets": _budgets(question, draft, batch_size, context_len, speedup),
        "crossover_batch_size": _crossover(question, draft, small_draft, context_len, kv_budget) if small_draft else None,
    }
    return document, _words(document, question, draft, (batch_size, context_len, kv_budget), small_draft)


def _acceptance(question: Question, draft: Draft) -> dict[str, Any]:
    """The curves; for a draft without one, an acceptance that many sparse drafts have."""
    known = find_curve(question.model.curves, question.deployment.target.name, draft)
    return {"curves": question.model.curves} if known else {"acceptance_rate": 0.8}


def _budgets(question: Question, draft: Draft, batch_size: int, context_len: int, speedup: float) -> list[dict[str, Any]]:
    """For each budget the acceptance that the wanted speedup needs, what is known of it, and whether that is enough."""
    where: dict[str, Any] = {"batch_size": batch_size, "context_len": context_len, "gammas": GAMMAS, "speedup": speedup}
    needed = minimum_acceptance(question.deployment, draft, kv_budgets=KV_BUDGETS, **where)
    answer = find_curve(question.model.curves, question.deployment.target.name, draft)
    enough, known = [], np.full(len(KV_BUDGETS), np.nan)
    if answer is not None:
        known = answer.curve.rate(np.minimum(KV_BUDGETS, context_len), context_len)
        enough = admissible_budgets(question.deployment, draft, kv_budgets=KV_BUDGETS, curve=answer.curve, **where)
    return [
        {
            "kv_budget": budget,
            "minimum_acceptance_rate": None if np.isnan(least) else float(least),
            "acceptance_rate": None if np.isnan(rate) else float(rate),
            "admissible": budget in enough if answer is not None else None,
        }
        for budget, least, rate in zip(KV_BUDGETS, needed, known, strict=True)
    ]


def _crossover(question: Question, draft: Draft, small: str, context_len: int, kv_budget: int) -> int | None:
    other = find_draft(small, "streaming_llm", question.deployment)
    budgets = (float(kv_budget), float(kv_budget))
    return crossover_batch_size(
        question.deployment, other, draft, context_len=context_len, gammas=GAMMAS, kv_budgets=budgets, curves=question.model.curves
    )


def _words(document: dict[str, Any], question: Question, draft: Draft, where: Sequence[int], small_draft: str | None) -> str:
    batch_size, context_len, kv_budget = where
    bounds = [[str(batch), *row.values()] for batch, row in document["bounds"].items()]
    budgets = [
        [str(one["kv_budget"]), _rate(one["minimum_acceptance_rate"]), _rate(one["acceptance_rate"]), _yes(one["admissible"])]
        for one in document["budgets"]
    ]
    ridges = ", ".join(f"{value:.0f} in {dtype}" for dtype, value in document["ridge_points_flop_per_byte"].items())
    critical = document["critical_context_len"]
    described = draft.strategy(1, kv_budget).draft_text
    wanted = f"a speedup of {document['wanted_speedup']:.2f}x at batch {batch_size}, context {format_tokens(context_len)}"
    lines = [
        f"{question.deployment.hardware.name}: compute-bound above {ridges} FLOP/byte, by the datasheet",
        "",
        "what a plain decoding step spends most on",
        text.table(["batch \\ context", *map(format_tokens, CONTEXT_LENS)], bounds),
        "",
        f"{described}: batch {LARGE_BATCH} gains more than batch {SMALL_BATCH} "
        + ("at no context up to 131,072" if critical is None else f"from a context of about {critical:,.0f} tokens"),
        "",
        f"{wanted} needs, at the best gamma",
        text.table(["KV budget", "acceptance", "known", "enough"], budgets),
    ]
    if small_draft is not None:
        found = document["crossover_batch_size"]
        when = "at no batch size up to 4096" if found is None else f"from batch size {found}"
        lines += ["", f"self-speculation overtakes {small_draft} {when}, at context {format_tokens(context_len)}"]
    return "\n".join(lines)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "-"}[value]
