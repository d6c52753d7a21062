"""Plans of every kind, small enough to read."""

from __future__ import annotations

from magicdec.costmodel.plans.plan import Plan, PlannedHardware, PlannedModel, PredictedRound
from magicdec.costmodel.plans.policy_table import PolicyTable
from magicdec.costmodel.plans.strategy import NO_SPECULATION, Strategy
from magicdec.costmodel.plans.workload import Workload

STRATEGIES = {
    "none": NO_SPECULATION,
    "streaming": Strategy("self", "streaming_llm", 512, 4),
    "snapkv": Strategy("self", "snapkv", 2049, 3),
    "model": Strategy("model", gamma=4, draft_model="Llama-3.2-1B"),
    "sparse model": Strategy("model", "streaming_llm", 512, 3, "Llama-3.2-1B"),
    "ngram": Strategy("ngram", gamma=5),
    "eagle3": Strategy("eagle3", gamma=3),
    "mtp": Strategy("mtp", gamma=2),
    "fp8 KV": Strategy("self", gamma=4, kv_dtype="fp8"),
    "int4 KV": Strategy("self", gamma=4, kv_dtype="int4"),
    "int8 weights": Strategy("self", gamma=4, weight_dtype="int8"),
}
BATCH_SIZES, CONTEXT_LENS = [1, 8, 32, 64], [4000, 32_000, 128_000]


def plan_of(
    strategy: Strategy, policy: PolicyTable | None = None, *, batch_size: int = 16, num_gpus: int = 4, rate: float | None = 0.8
) -> Plan:
    """A plan at context 32000 on GPUs that share the model four by four (or all of them)."""
    numbers = {name: 0.5 for name in PredictedRound.__dataclass_fields__ if name not in ("bound", "breakdown")}
    numbers["predicted_mean_acceptance_length"] = 2.952 if strategy.gamma >= 2 else 1.0  # of rate 0.8 at gamma 3
    return Plan(
        workload=Workload(batch_size, 32_000, 128),
        hardware=PlannedHardware(name="h200-sxm", sha256="0" * 64, num_gpus=num_gpus, tensor_parallel=min(num_gpus, 4)),
        target=PlannedModel(name="Llama-3.1-8B", fingerprint="0" * 16),
        draft=PlannedModel(name=strategy.draft_model, fingerprint="1" * 16) if strategy.draft_model else None,
        strategy=strategy,
        prediction=PredictedRound(**{**numbers, "predicted_acceptance_rate": rate}, bound="kv", breakdown={}),  # type: ignore[arg-type]
        policy=policy,
    )


def table(*rows: list[Strategy]) -> PolicyTable:
    """A policy table over BATCH_SIZES and CONTEXT_LENS; a row of one strategy holds at every context."""
    cells = [row * len(CONTEXT_LENS) if len(row) == 1 else row for row in rows]
    strategies = list(dict.fromkeys(strategy for row in cells for strategy in row))
    return PolicyTable(
        batch_sizes=BATCH_SIZES[: len(cells)],
        context_lens=CONTEXT_LENS,
        strategies=strategies,
        choice=[[strategies.index(strategy) for strategy in row] for row in cells],
        predicted_speedup=[[1.0] * len(CONTEXT_LENS)] * len(cells),
    )


def of(kind: str, *gammas: int) -> list[Strategy]:
    """Strategies of one kind with these gammas, 0 for plain decoding."""
    base = STRATEGIES[kind]
    return [
        Strategy(base.draft_kind, base.kv_policy, base.kv_budget, gamma, base.draft_model, base.kv_dtype, base.weight_dtype)
        if gamma
        else NO_SPECULATION
        for gamma in gammas
    ]


def tables(kind: str) -> dict[str, PolicyTable]:
    """Policy tables with one draft: over batch sizes alone, with gamma 0 here and there, and over contexts too."""
    return {
        "constant": table(*([draft] for draft in of(kind, 3, 3, 3, 3))),
        "falling": table(*([draft] for draft in of(kind, 5, 4, 2, 1))),
        "off at last": table(*([draft] for draft in of(kind, 4, 4, 4, 0))),
        "off at first": table(*([draft] for draft in of(kind, 0, 2, 3, 4))),
        "off between": table(*([draft] for draft in of(kind, 3, 0, 2, 0))),
        "off everywhere": table(*([draft] for draft in of(kind, 0, 0, 0, 0))),
        "over contexts": table(of(kind, 0, 1, 2), of(kind, 0, 2, 3), of(kind, 1, 3, 4), of(kind, 2, 4, 5)),
        "on at long contexts": table(of(kind, 0, 0, 2), of(kind, 0, 0, 3), of(kind, 0, 0, 3), of(kind, 0, 0, 5)),
    }
