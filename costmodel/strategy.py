"""A strategy is a value: draft kind, KV policy, KV budget and gamma."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import pydantic

from costmodel.errors import InputError, Problem

DraftKind = Literal["none", "self", "model"]
KvPolicy = Literal["full", "streaming_llm", "snapkv"]
DRAFT_KINDS: tuple[DraftKind, ...] = get_args(DraftKind)
KV_POLICIES: tuple[KvPolicy, ...] = get_args(KvPolicy)
MAX_GAMMA = 64


@dataclass(frozen=True)
class Strategy:
    """How tokens are drafted, if at all.

    Attributes:
        draft_kind: `none`; `self`, the target reading part of its KV cache; `model`, a smaller model.
        kv_policy: Which KV entries the draft reads: `full`; `streaming_llm`, the first few and the most recent;
            `snapkv`, those the end of the prompt attended to most.
        kv_budget: How many entries it reads at most, per sequence; None with `full`. [tokens]
        gamma: Draft tokens per round; 0 with draft kind `none`. [tokens]
        draft_model: Name or path of the smaller model.
    """

    draft_kind: DraftKind = "none"
    kv_policy: KvPolicy = "full"
    kv_budget: int | None = None
    gamma: int = 0
    draft_model: str | None = None

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid", strict=True)

    def __post_init__(self) -> None:
        problems = [Problem("strategy", key, expected, repr(found)) for key, expected, found in self._mistakes()]
        if problems:
            raise InputError(*problems)

    def _mistakes(self) -> list[tuple[str, str, object]]:
        mistakes: list[tuple[str, str, object]] = []
        drafts = self.draft_kind != "none"
        if self.draft_kind not in DRAFT_KINDS:
            mistakes.append(("draft_kind", " or ".join(DRAFT_KINDS), self.draft_kind))
        if self.kv_policy not in KV_POLICIES:
            mistakes.append(("kv_policy", " or ".join(KV_POLICIES), self.kv_policy))
        if drafts and not 1 <= self.gamma <= MAX_GAMMA:
            mistakes.append(("gamma", f"1 to {MAX_GAMMA} draft tokens per round", self.gamma))
        if not drafts and self.gamma != 0:
            mistakes.append(("gamma", "0 where nothing is drafted", self.gamma))
        if not drafts and self.kv_policy != "full":
            mistakes.append(("kv_policy", "full where nothing is drafted", self.kv_policy))
        if (self.draft_model is None) == (self.draft_kind == "model"):
            mistakes.append(("draft_model", "a model exactly when draft_kind is model", self.draft_model))
        if self.kv_policy == "full" and self.kv_budget is not None:
            mistakes.append(("kv_budget", "none with kv_policy full, which reads everything", self.kv_budget))
        if self.kv_policy != "full" and (self.kv_budget is None or self.kv_budget < 1):
            mistakes.append(("kv_budget", f"a positive number of KV entries for {self.kv_policy}", self.kv_budget))
        if self.draft_kind == "self" and self.kv_policy == "full":
            mistakes.append(("kv_policy", "a sparse one for draft_kind self, else the draft costs what the target does", "full"))
        return mistakes

    @property
    def family(self) -> tuple[str, str, str | None]:
        """What kind of draft it is, budget and gamma aside."""
        return (self.draft_kind, self.kv_policy, self.draft_model)

    def __str__(self) -> str:
        if self.draft_kind == "none":
            return "no speculation"
        who = "self" if self.draft_kind == "self" else self.draft_model
        kv = "full KV" if self.kv_policy == "full" else f"{self.kv_policy} budget {self.kv_budget}"
        return f"{who} draft, {kv}, gamma {self.gamma}"


NO_SPECULATION = Strategy()
