"""What a plan may choose from, and which limits it must hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.export.engines import ENGINES
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.planning.search import GAMMAS, KV_BUDGETS
from magicdec.costmodel.plans.strategy import DraftKind, Strategy
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft

from .checks import finite, names, one_of, probabilities, whole_number
from .names import DEFAULT_KV_BUDGET, find_draft, find_head, find_model

Objective = Literal["latency", "throughput", "cost"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
DEFAULT_OUTPUT_LEN = 128  # tokens of a request, where nothing is said
SELF_POLICIES = ("streaming_llm", "snapkv")  # of a self draft, unless given
MODEL_POLICIES = ("full", "streaming_llm")  # of a draft model, unless given
USUAL_POLICIES: dict[str, tuple[str, ...]] = {
    "none": (),
    "self": SELF_POLICIES,
    "ngram": ("full",),
    "eagle3": ("full",),
    "mtp": ("full",),
}


@dataclass(frozen=True)
class PlanSearch:
    """Search space and constraints of a plan.

    Attributes:
        drafts: Draft kinds beside decoding without speculation: `self`, `ngram`, `eagle3`, `mtp` and names of smaller models;
            None for `self`, or with an engine for the kinds that it runs without a draft model.
        engine: A serving engine: only what it runs is considered.
        output_len: New tokens of each sequence of a map. [tokens]
        kv_policies: For the drafts that have a KV budget; empty for the usual ones of each kind.
        batch_sizes: To choose from; empty for the workload's. [sequences]
        objective: What is best: `latency`, `throughput` or `cost`.
        max_tpot_s: Limit on the time per output token. [s]
        gammas: To choose from. [tokens]
        kv_budgets: To choose from; empty for the usual ones, or 512 alone where acceptance is given, which belongs to one
            budget. [tokens]
        acceptance_rate, acceptance_by_position: Given instead of looked up. [0-1]
        draft_kv_dtype, draft_weight_dtype: Narrower types of one more self draft, which reads the whole KV cache.
        exact_output: Every request ends after exactly the workload's output length; the tokens that its last round accepts
            beyond that are lost.
        cautious: Compare strategies by the lower ends of their intervals; otherwise by what is expected.
        must_speculate: Choose the best speculative strategy even where no speculation is faster.

    Raises:
        InputError: A value is out of its range.
    """

    drafts: tuple[str, ...] | None = None
    kv_policies: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    objective: Objective = "latency"
    max_tpot_s: float | None = None
    gammas: tuple[int, ...] = GAMMAS
    kv_budgets: tuple[int, ...] = ()
    acceptance_rate: float | None = None
    acceptance_by_position: tuple[float, ...] | None = None
    draft_kv_dtype: str | None = None
    draft_weight_dtype: str | None = None
    exact_output: bool = False
    cautious: bool = True
    must_speculate: bool = False
    engine: str | None = None
    output_len: int = 0

    def __post_init__(self) -> None:
        one_of("objective", self.objective, OBJECTIVES)
        finite("max_tpot_s", self.max_tpot_s, "a positive time")
        if self.max_tpot_s == 0:
            raise bad("max_tpot_s", "", "a positive time", 0)
        rate = finite("acceptance_rate", self.acceptance_rate, "a probability from 0 to 1")
        probabilities("acceptance_rate", None if rate is None else [rate])
        probabilities("acceptance_by_position", self.acceptance_by_position)
        one_of("engine", self.engine, tuple(ENGINES))
        for name in ("batch_sizes", "gammas", "kv_budgets"):
            for value in getattr(self, name):
                whole_number(name, value)
        for name in ("drafts", "kv_policies"):
            names(name, getattr(self, name) or ())

    @property
    def budgets(self) -> Sequence[int]:
        """The KV budgets to choose from. [tokens]"""
        given = self.acceptance_rate is not None or self.acceptance_by_position is not None
        return self.kv_budgets or ((DEFAULT_KV_BUDGET,) if given else KV_BUDGETS)

    def checkpoint_of(self, draft: TransformerConfig) -> str | None:
        """The path or id on the Hub that was given for a draft model; None for the name of a built-in one."""
        for name in self.drafts or ():
            if name not in USUAL_POLICIES and find_head(name) is None and (found := find_model(name, "draft")).config == draft:
                return found.checkpoint
        return None

    def resolve_drafts(self, deployment: Deployment) -> list[Draft]:
        """The drafts to choose from, each once.

        Raises:
            InputError: A name is unknown, or a KV policy or budget is given for a draft that has none.
        """
        found: list[Draft] = []
        for name in self._usual_drafts(deployment) if self.drafts is None else self.drafts:
            known = name in USUAL_POLICIES or find_head(name) is not None
            budgeted = not known or name == "self"
            if not budgeted and name != "none" and self.drafts == (name,) and (self.kv_policies or self.kv_budgets):
                raise bad("kv_policy" if self.kv_policies else "kv_budget", "", f"none for `draft` {name}", "one")
            policies = (self.kv_policies if budgeted else ()) or USUAL_POLICIES.get(name, ("full",) if known else MODEL_POLICIES)
            found += [find_draft(name, policy, deployment) for policy in policies]
        if self.draft_kv_dtype is not None or self.draft_weight_dtype is not None:
            kv, weights = self.draft_kv_dtype, self.draft_weight_dtype
            found.append(find_draft("self", "full", deployment, kv_dtype=kv, weight_dtype=weights))
        return self._run_by_engine(list(dict.fromkeys(found)), deployment)

    def runs(self, strategy: Strategy, batch_size: int) -> bool:
        """Whether the engine, if one is given, runs a strategy at a batch size."""
        if self.engine is None or strategy.draft_kind == "none":
            return True
        engine = ENGINES[self.engine]
        return engine.runs(strategy) and (engine.drafts_batches or batch_size == 1)

    def left_out(self, batch_sizes: Sequence[int]) -> list[str]:
        """What the engine keeps out of the search at these batch sizes, as notes."""
        if self.engine is None or ENGINES[self.engine].drafts_batches or max(batch_sizes) == 1:
            return []
        return [f"{self.engine} drafts for one sequence at a time: larger batches are planned without speculation"]

    def _usual_drafts(self, deployment: Deployment) -> tuple[str, ...]:
        if self.draft_kv_dtype is not None or self.draft_weight_dtype is not None:
            return () if self.engine else ("self",)
        if self.engine is None or self.engine == "vllm-vegas":
            return ("self",)
        kinds = ("eagle3", "ngram", *(("mtp",) if deployment.target.num_mtp else ()))
        return tuple(kind for kind in kinds if ENGINES[self.engine].runs(Strategy(kind, gamma=1)))

    def _run_by_engine(self, drafts: list[Draft], deployment: Deployment) -> list[Draft]:
        """The drafts that the engine runs, shared by as many GPUs as it shares them by.

        Raises:
            InputError: It runs none of them, or has not the types of the target.
        """
        if self.engine is None:
            return drafts
        engine = ENGINES[self.engine]
        runs = [draft for draft in drafts if engine.runs(draft.strategy(1, 1))]
        if drafts and not runs:
            known: tuple[DraftKind, ...] = ("eagle3", "ngram", *(("mtp",) if deployment.target.num_mtp else ()))
            kinds = [kind for kind in known if engine.runs(Strategy(kind, gamma=1))]
            model = [*kinds, "a smaller model"] if kinds else ["self"]
            found = ", ".join(self.drafts or ("a self draft in smaller types",))
            raise bad("draft", "", f"a draft that {self.engine} runs: {' or '.join(model)}", found)
        if engine.shares_drafts:
            shared_by = deployment.tensor_parallel
            runs = [replace(draft, tensor_parallel=shared_by) if draft.kind == "model" else draft for draft in runs]
        return runs


def check_types(engine: str | None, weight_dtype: str | None, kv_dtype: str | None) -> None:
    """Refuse types of the target that an engine has not.

    Raises:
        InputError: It has not; the types that it has are named.
    """
    if engine is None:
        return
    runs = ENGINES[engine]
    for name, wanted, has in (("weight_dtype", weight_dtype, runs.weight_dtypes), ("kv_dtype", kv_dtype, runs.kv_dtypes)):
        if wanted is not None and wanted not in has:
            gguf = f"nothing beside {engine}: name the model with its GGUF type, such as llama-3.1-8b-q4_k_m"
            model = f"nothing beside {engine}, whose KV cache has the type of the model"
            expected = f"what {engine} has: {' or '.join(has)}" if has else gguf if name == "weight_dtype" else model
            raise bad(name, "", expected, wanted)
