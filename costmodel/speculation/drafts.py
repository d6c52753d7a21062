"""Drafts: the network of a draft step, the cost of selecting KV entries, and memory.

Gamma and KV budget are not part of a draft: they are axes of the evaluated grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np
from numpy.typing import ArrayLike

from ..layers.attention import AttentionKind
from ..models.transformer import TransformerConfig
from ..passes.attention_work import Array, Work
from ..passes.cache import kept_entries, kv_bytes_per_gpu, state_bytes_per_gpu
from ..plans.strategy import COPY_SLACK, CompressedDtype, DraftKind, KvPolicy, Strategy

QUEST_PAGE = 16  # Quest (arXiv 2406.10774) keeps the minimum and maximum key of each page
PQ_BYTES = 16  # PQCache (arXiv 2407.12820) as in MagicDec: 16 sub-vectors, one byte each
SCORE_PASSES, SCORE_BYTES = 3, 4  # float32 scores are written once and read twice by top-k
SELECT_KERNELS = 2  # scoring and top-k, per layer
EAGLE3_VOCABULARY = 32000  # EAGLE-3 heads (arXiv 2503.01840) predict only the most frequent tokens


@dataclass(frozen=True)
class Tree:
    """A tree of draft tokens, as EAGLE drafts them.

    Attributes:
        width: Tokens drafted at each level: the top-k.
        tokens: Tokens that are verified, the one before the draft included.
    """

    width: int
    tokens: int


@dataclass(frozen=True)
class Draft:
    """A way of drafting tokens.

    Attributes:
        kind: Draft kind, as in `Strategy`.
        kv_policy: KV entries the draft reads, as in `Strategy`.
        model: The smaller model, for kind `model`.
        tensor_parallel: GPUs that share the smaller model; None for one per KV head, up to the target's.
        kv_dtype, weight_dtype: Compressed dtypes that a `self` draft reads.
        head: The prediction layer, for kinds `eagle3` and `mtp`; None for one like those that are usual.
        tree: The tree that it drafts; None for a chain.
        one_pass: One pass drafts all tokens of a round, as in DFlash and DSpark.
        matches: Share of rounds in which a sequence drafts at all: an n-gram drafts only where something matches. [0-1]
    """

    kind: DraftKind = "none"
    kv_policy: KvPolicy = "full"
    model: TransformerConfig | None = None
    tensor_parallel: int | None = None
    kv_dtype: CompressedDtype | None = None
    weight_dtype: CompressedDtype | None = None
    head: TransformerConfig | None = None
    tree: Tree | None = None
    one_pass: bool = False
    matches: float = 1.0

    @property
    def sparse(self) -> bool:
        """True if the draft has a KV budget."""
        return self.kv_policy != "full"

    @property
    def drafts(self) -> bool:
        """True unless the kind is `none`."""
        return self.kind != "none"

    def gpus(self, tensor_parallel: int) -> int:
        """Return the number of GPUs that share the draft if `tensor_parallel` GPUs share the target."""
        if self.model is None:
            return tensor_parallel
        return self.tensor_parallel or min(tensor_parallel, self.model.num_kv_heads)

    def network(self, target: TransformerConfig) -> TransformerConfig | None:
        """Return the network of a draft step; None without speculation and for n-gram drafts."""
        if self.kind in ("none", "ngram"):
            return None
        if self.kind == "model":
            return self.model
        if self.kind == "self":
            return target.compressed(weight_dtype=self.weight_dtype, kv_dtype=self.kv_dtype)
        return self.head or prediction_head(target, self.kind)

    def strategy(self, gamma: int, kv_budget: float) -> Strategy:
        """Return the strategy of one point of the grid.

        Args:
            gamma: Draft tokens per round. [tokens]
            kv_budget: KV entries the draft reads; ignored if the draft is not sparse. [tokens]
        """
        return Strategy(
            draft_kind=self.kind,
            kv_policy=self.kv_policy,
            kv_budget=int(kv_budget) if self.sparse else None,
            gamma=gamma,
            draft_model=self.model.name if self.model else None,
            kv_dtype=self.kv_dtype,
            weight_dtype=self.weight_dtype,
        )


NO_DRAFT = Draft()


def prediction_head(target: TransformerConfig, kind: DraftKind) -> TransformerConfig:
    """Describe the prediction layer on the target's hidden states as a one-layer transformer.

    Not modelled: the projection of hidden states and embeddings, a few per cent of the layer.

    Args:
        target: The model it is attached to.
        kind: `eagle3` or `mtp`.

    Source:
        EAGLE-3 (arXiv 2503.01840): a dense layer, and a head for frequent tokens. DeepSeek-V3 (arXiv 2412.19437): a layer like
        those of the target, and the target's head.
    """
    window = target.sliding_window if target.num_window_layers is None else None  # of mixed layers, take a full-attention one
    layer = replace(
        target,
        name=f"{target.name} {kind} head",
        num_layers=1,
        tied_embeddings=True,
        sliding_window=window,
        num_window_layers=None,
        lookup_params=0,
        vision_params=0,
        extra=(),
        extra_vectors=0,
        mtp=(),
        stored=None,
    )
    if kind == "mtp":
        own = target.mtp or tuple(replace(group, count=1) for group in target.groups[-1:])
        return replace(layer, groups=own, experts=replace(target.experts, num_dense_layers=0) if target.experts else None)
    layer = replace(layer, groups=(), latent=None if target.groups else target.latent)
    return replace(layer, vocab_size=min(EAGLE3_VOCABULARY, target.vocab_size), experts=None, sliding_window=None)


def index_bytes_per_entry(policy: KvPolicy, kind: AttentionKind, element_bytes: float, tensor_parallel: int) -> float:
    """Index size of a policy per KV entry of one layer, on one GPU. [bytes/entry]

    Args:
        policy: The KV policy.
        kind: Attention of the layer.
        element_bytes: Size of one element of the KV cache. [bytes]
        tensor_parallel: GPUs that share the layer.
    """
    match policy:
        case "quest":
            return 2 * kind.key_width_on(tensor_parallel) / QUEST_PAGE * element_bytes
        case "pq":
            return kind.kv_heads_on(tensor_parallel) * PQ_BYTES
        case "full" | "streaming_llm" | "snapkv" | "topk":
            return 0.0
        case _:
            assert_never(policy)


def selection_work(
    policy: KvPolicy, model: TransformerConfig, *, batch_size: ArrayLike, context_len: ArrayLike, tensor_parallel: int = 1
) -> Work:
    """FLOP and bytes of selecting the KV entries of one draft step (T_select in the paper).

    StreamingLLM has fixed entries; SnapKV reuses the attention scores of the verification. The other policies look at every
    cached token at every step: top-k at the whole key, Quest and PQ at an index.

    Args:
        policy: The KV policy.
        model: The network that drafts.
        batch_size: Sequences of the replica.
        context_len: Tokens in the KV cache, per sequence. [tokens]
        tensor_parallel: GPUs that share the network.

    Returns:
        Work on one GPU, broadcast over batch size and context. [FLOP, bytes]

    Source:
        MagicDec (arXiv 2408.11049), eq. 3.
    """
    flop = moved = 0 * np.asarray(batch_size, np.float64) * np.asarray(context_len, np.float64)
    if not selects_at_every_step(policy):
        return Work(flop, moved)
    element_bytes, scored = model.kv_bytes_per_element, 1 / QUEST_PAGE if policy == "quest" else 1.0
    for kind, layers in model.attentions:
        tokens = np.asarray(batch_size, np.float64) * (layers * kept_entries(kind, context_len))
        looked_at = kind.key_width_on(tensor_parallel) * element_bytes
        if policy != "topk":
            looked_at = index_bytes_per_entry(policy, kind, element_bytes, tensor_parallel)
        scores = kind.kv_heads_on(tensor_parallel) * scored * SCORE_PASSES * SCORE_BYTES
        products = 2 * kind.heads * kind.scored_width / tensor_parallel * (2 * scored if policy == "quest" else 1.0)
        flop, moved = flop + tokens * products, moved + tokens * (looked_at + scores)
    return Work(flop, moved)


def selects_at_every_step(policy: KvPolicy) -> bool:
    """True if the policy re-selects KV entries at every draft step."""
    return policy in ("topk", "quest", "pq")


def copied_bytes(
    draft: Draft,
    network: TransformerConfig | None,
    batch_size: Array,
    entries: Array,
    context_len: Array,
    mean_acceptance_length: Array,
    output_len: int | None,
) -> Array:
    """Bytes of KV entries that a round copies, on average, because a draft with a compacted copy selects it anew.

    It does so when the copy has outgrown its budget, a `COPY_SLACK`-th of which is left free, and for each new prompt.

    Args:
        draft: The draft.
        network: The network that drafts; None if there is none.
        batch_size: Sequences of the replica.
        entries: KV entries that a draft step reads, per sequence. [tokens]
        context_len: Tokens in the KV cache, per sequence. [tokens]
        mean_acceptance_length: Tokens per round. [tokens]
        output_len: New tokens of a request; None to leave the first selection out. [tokens]
    """
    if network is None or not draft.sparse or selects_at_every_step(draft.kv_policy):
        return 0 * batch_size
    first = entries / output_len if output_len else 0.0
    per_token = np.where(entries < context_len, COPY_SLACK + first, 0.0)  # entries copied for each new token
    return batch_size * mean_acceptance_length * per_token * network.kv_bytes_per_token


def select_kernels(policy: KvPolicy) -> int:
    """Kernels launched per layer and draft step to select entries."""
    return SELECT_KERNELS if selects_at_every_step(policy) else 0


def draft_memory(
    draft: Draft,
    target: TransformerConfig,
    *,
    max_context_len: Array,
    kv_budget: Array,
    gamma: Array,
    tensor_parallel: int,
    head_sharded: bool = True,
) -> tuple[Array, float]:
    """Memory of a draft on one GPU, in addition to the target: (KV cache and index per sequence, weights). [bytes]

    A self draft keeps a compact copy of the entries it reads, or a compressed copy of all; policies that re-select at every
    step read the target's cache. A smaller model and a prediction head have their own cache.

    Args:
        draft: The draft.
        target: The served model.
        max_context_len: Longest context. [tokens]
        kv_budget: KV entries the draft reads; inf for all. [tokens]
        gamma: Draft tokens per round. [tokens]
        tensor_parallel: GPUs that share the target.
        head_sharded: The LM head is split over the GPUs too.
    """
    network, gpus = draft.network(target), draft.gpus(tensor_parallel)
    if network is None:
        return 0 * max_context_len, 0.0
    entries = np.where(np.isfinite(kv_budget), np.minimum(max_context_len, kv_budget), max_context_len) + gamma
    index = 0 * max_context_len
    for kind, layers in network.attentions:
        per_entry = index_bytes_per_entry(draft.kv_policy, kind, network.kv_bytes_per_element, gpus)
        index = index + layers * kept_entries(kind, max_context_len) * per_entry
    index = index + state_bytes_per_gpu(network, gpus)  # a draft advances states of its own
    if draft.kind == "self":
        copied = draft.kv_dtype is not None or not selects_at_every_step(draft.kv_policy)
        kv = kv_bytes_per_gpu(network, entries, gpus) if copied else 0 * entries
        return kv + index, compressed_copy_bytes(target, network, gpus)
    kept = max_context_len + gamma if selects_at_every_step(draft.kv_policy) else entries
    weights = network.weight_bytes_per_gpu(gpus, head_sharded=head_sharded)
    if draft.kind == "mtp":  # embedding and LM head are shared with the target
        weights -= network.matrices(gpus if head_sharded else 1)[-1].bytes
        if not network.tied_embeddings:
            weights -= network.embedding_bytes / (gpus if head_sharded else 1)
    return kv_bytes_per_gpu(network, kept, gpus) + index, weights


def compressed_copy_bytes(target: TransformerConfig, network: TransformerConfig, tensor_parallel: int) -> float:
    """Size on one GPU of the compressed copy of the matrices that a self draft reads; 0 if it reads the target's. [bytes]

    Args:
        target: The served model.
        network: The same model in the draft's dtypes.
        tensor_parallel: GPUs that share it.
    """
    own = network.matrices(tensor_parallel)
    if own == target.matrices(tensor_parallel):
        return 0.0
    return sum(matrix.bytes for matrix in own[:-1])
