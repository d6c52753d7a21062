"""Decoding strategy: draft kind, KV policy, KV budget and gamma."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..base.errors import InputError, Problem
from ..base.limits import MAX_TOKENS
from ..base.names import NAME_RULE, is_name
from ..base.records import STRICT

DraftKind = Literal["none", "self", "model", "ngram", "eagle3", "mtp"]
KvPolicy = Literal["full", "streaming_llm", "snapkv", "topk", "quest", "pq"]
CompressedDtype = Literal["fp8", "int8", "int4"]
DRAFT_KINDS: tuple[DraftKind, ...] = get_args(DraftKind)
KV_POLICIES: tuple[KvPolicy, ...] = get_args(KvPolicy)
COMPRESSED_DTYPES: tuple[CompressedDtype, ...] = get_args(CompressedDtype)
# Types of the target's KV cache; those of ggml are llama.cpp's.
KvDtype = Literal["fp8", "int8", "int4", "q8_0", "q4_0"]
KV_DTYPES: tuple[KvDtype, ...] = get_args(KvDtype)
MAX_GAMMA = 64
COPY_SLACK = 16  # a compacted copy of KV entries is selected with one in so many left free for new tokens


@dataclass(frozen=True)
class Strategy:
    """How tokens are drafted; immutable and comparable.

    Attributes:
        draft_kind: `none`: no speculation. `self`: the target with a sparse KV cache or compressed weights. `model`: a smaller
            model. `ngram`: prompt lookup. `eagle3`, `mtp`: a trained prediction layer on the target's hidden states.
        kv_policy: KV entries the draft reads. `full`: all. `streaming_llm`: attention sinks and the most recent tokens.
            `snapkv`: entries that the latest queries of the target attended to most. `topk`: entries with the largest
            attention scores, re-selected at every step. `quest`: pages, ranked by bounds of their keys. `pq`: entries, ranked
            by product-quantised keys.
        kv_budget: Maximum number of entries the draft reads, per sequence; None with `full`. [tokens]
        gamma: Draft tokens per round; 0 with draft kind `none`. [tokens]
        draft_model: Name or path of the smaller model.
        kv_dtype: Dtype of the KV entries that a self draft reads; None for the target's.
        weight_dtype: Dtype of the weights that a self draft reads; None for the target's.
    """

    draft_kind: DraftKind = "none"
    kv_policy: KvPolicy = "full"
    kv_budget: int | None = None
    gamma: int = 0
    draft_model: str | None = None
    kv_dtype: CompressedDtype | None = None
    weight_dtype: CompressedDtype | None = None

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        problems = [Problem("strategy", key, expected, repr(found)) for key, expected, found in self._invalid_fields()]
        if problems:
            raise InputError(*problems)

    def _invalid_fields(self) -> list[tuple[str, str, object]]:
        """(field, expected, found) of every invalid field."""
        mistakes: list[tuple[str, str, object]] = []
        drafts = self.draft_kind != "none"
        if self.draft_kind not in DRAFT_KINDS:
            mistakes.append(("draft_kind", " or ".join(DRAFT_KINDS), self.draft_kind))
        if self.kv_policy not in KV_POLICIES:
            mistakes.append(("kv_policy", " or ".join(KV_POLICIES), self.kv_policy))
        if drafts and not 1 <= self.gamma <= MAX_GAMMA:
            mistakes.append(("gamma", f"1 to {MAX_GAMMA} draft tokens per round", self.gamma))
        if not drafts and self.gamma != 0:
            mistakes.append(("gamma", "0 for draft_kind none", self.gamma))
        if self.draft_kind not in ("self", "model") and self.kv_policy != "full":
            mistakes.append(("kv_policy", f"full for draft_kind {self.draft_kind}", self.kv_policy))
        if (self.draft_model is None) == (self.draft_kind == "model"):
            mistakes.append(("draft_model", "a model if and only if draft_kind is model", self.draft_model))
        if self.draft_model is not None and not is_name(self.draft_model):
            mistakes.append(("draft_model", NAME_RULE, self.draft_model[:80]))
        if self.kv_policy == "full" and self.kv_budget is not None:
            mistakes.append(("kv_budget", "none with kv_policy full, which reads all entries", self.kv_budget))
        if self.kv_policy != "full" and (self.kv_budget is None or not 1 <= self.kv_budget <= MAX_TOKENS):
            mistakes.append(("kv_budget", f"a positive number of KV entries for {self.kv_policy}", self.kv_budget))
        for key, dtype in (("kv_dtype", self.kv_dtype), ("weight_dtype", self.weight_dtype)):
            if dtype is not None and (dtype not in COMPRESSED_DTYPES or self.draft_kind != "self"):
                mistakes.append((key, f"{' or '.join(COMPRESSED_DTYPES)} with draft_kind self, else none", dtype))
        if self.draft_kind == "self" and not self.reads_less_than_target:
            expected = "a sparse policy, a kv_dtype or a weight_dtype for draft_kind self, to make it cheaper than the target"
            mistakes.append(("kv_policy", expected, "full"))
        return mistakes

    @property
    def reads_less_than_target(self) -> bool:
        """True if a self draft reads fewer bytes than the target."""
        return self.kv_policy != "full" or self.kv_dtype is not None or self.weight_dtype is not None

    @property
    def family(self) -> tuple[str | None, ...]:
        """The draft without KV budget and gamma; strategies of one family differ only in these."""
        return (self.draft_kind, self.kv_policy, self.draft_model, self.kv_dtype, self.weight_dtype)

    @property
    def draft_text(self) -> str:
        """The draft as text, without gamma."""
        who = {"self": "self-speculation", "model": f"draft {self.draft_model}"}.get(self.draft_kind, f"{self.draft_kind} draft")
        kv = "full KV" if self.kv_policy == "full" else f"{self.kv_policy} budget {self.kv_budget}"
        shown = [kv] if self.draft_kind in ("self", "model") else []
        shown += [f"{what} in {dtype}" for what, dtype in (("KV", self.kv_dtype), ("weights", self.weight_dtype)) if dtype]
        return ", ".join([who, *shown])

    @property
    def short_text(self) -> str:
        """The draft in the fewest words, without gamma."""
        if self.draft_kind == "none":
            return "no speculation"
        who = self.draft_model.rpartition("/")[2] if self.draft_model else self.draft_kind
        kv = f" {self.kv_policy.removesuffix('_llm')} {self.kv_budget}" if self.kv_budget else ""
        types = [f" {what} in {dtype}" for what, dtype in (("KV", self.kv_dtype), ("weights", self.weight_dtype)) if dtype]
        return who + kv + ",".join(types)

    def __str__(self) -> str:
        return "no speculation" if self.draft_kind == "none" else f"{self.draft_text}, gamma {self.gamma}"


NO_SPECULATION = Strategy()
