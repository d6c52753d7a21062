"""What drafts, as a value: which passes a draft step makes, what choosing KV entries costs, and what memory it takes.

Gamma and KV budget are not here: they are axes of the grid that is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from ..models.transformer import TransformerConfig
from ..passes.forward import Array, Work
from ..plans.strategy import CompressedDtype, DraftKind, KvPolicy, Strategy

QUEST_PAGE = 16  # Quest (arXiv 2406.10774): the least and largest key of each page
PQ_BYTES = 16  # PQCache (arXiv 2407.12820) as in MagicDec: 16 sub-vectors of one byte each
SCORE_PASSES, SCORE_BYTES = 3, 4  # scores are written in float32, and read twice to find the largest
SELECT_KERNELS = 2  # scoring and choosing, per layer
EAGLE3_VOCABULARY = 32000  # EAGLE-3 heads (arXiv 2503.01840) predict the most frequent tokens only


@dataclass(frozen=True)
class Draft:
    """What drafts.

    Attributes:
        kind: As in a `Strategy`.
        kv_policy: Which KV entries it reads.
        model: The smaller model for kind `model`.
        tensor_parallel: GPUs that share the smaller model; None for as many as it has KV heads, up to the target's.
        kv_dtype, weight_dtype: For kind `self`: what the draft reads is stored in these types.
    """

    kind: DraftKind = "none"
    kv_policy: KvPolicy = "full"
    model: TransformerConfig | None = None
    tensor_parallel: int | None = None
    kv_dtype: CompressedDtype | None = None
    weight_dtype: CompressedDtype | None = None

    @property
    def sparse(self) -> bool:
        """It has a KV budget."""
        return self.kv_policy != "full"

    @property
    def drafts(self) -> bool:
        """Anything is drafted at all."""
        return self.kind != "none"

    def gpus(self, tensor_parallel: int) -> int:
        """GPUs that share the draft, where `tensor_parallel` share the target."""
        if self.model is None:
            return tensor_parallel
        return self.tensor_parallel or min(tensor_parallel, self.model.num_kv_heads)

    def network(self, target: TransformerConfig) -> TransformerConfig | None:
        """What a draft step passes through; None where no network drafts."""
        if self.kind in ("none", "ngram"):
            return None
        if self.kind == "model":
            return self.model
        if self.kind == "self":
            return target.compressed(weight_dtype=self.weight_dtype, kv_dtype=self.kv_dtype)
        return prediction_head(target, self.kind)

    def strategy(self, gamma: int, kv_budget: float) -> Strategy:
        """The strategy of one point of the grid."""
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
    """The one layer that drafts from the target's hidden states, as a transformer of its own.

    Left out: the projection that joins hidden states and embeddings, a few per cent of the layer.

    Source:
        EAGLE-3 (arXiv 2503.01840): a dense layer and a head over frequent tokens. DeepSeek-V3 (arXiv 2412.19437): a layer
        like the target's own and its head.
    """
    window = target.sliding_window if target.num_window_layers is None else None  # one layer of several kinds: the long one
    one = replace(
        target, name=f"{target.name} {kind} head", num_layers=1, tied_embeddings=True, sliding_window=window, num_window_layers=None
    )
    if kind == "mtp":
        return replace(one, experts=replace(target.experts, num_dense_layers=0) if target.experts else None)
    return replace(one, vocab_size=min(EAGLE3_VOCABULARY, target.vocab_size), experts=None, sliding_window=None)


def index_bytes_per_entry(policy: KvPolicy, model: TransformerConfig, tensor_parallel: int) -> float:
    """What a policy keeps beside a layer's KV entry to choose among them, on one GPU. [bytes/entry]"""
    if policy == "quest":
        return 2 * model.key_width_per_gpu(tensor_parallel) / QUEST_PAGE * model.kv_bytes_per_element
    return model.kv_heads_per_gpu(tensor_parallel) * PQ_BYTES if policy == "pq" else 0.0


def selection_work(
    policy: KvPolicy, model: TransformerConfig, *, batch_size: ArrayLike, context_len: ArrayLike, tensor_parallel: int = 1
) -> Work:
    """What choosing the KV entries costs in one draft step: T_select, before it is priced.

    StreamingLLM knows its entries; SnapKV chooses from the scores of a verification that is made anyway. The others
    look at every cached token at every step: top-k at its whole key, Quest and PQ at an index.

    Returns:
        FLOP and bytes on one GPU, of the shape of batch and context. [FLOP, bytes]

    Source:
        MagicDec (arXiv 2408.11049), eq. 3.
    """
    tokens = np.asarray(batch_size, np.float64) * _kept(model, context_len)
    if not selects_at_every_step(policy):
        return Work(0 * tokens, 0 * tokens)
    heads = model.kv_heads_per_gpu(tensor_parallel)
    looked_at = model.key_width_per_gpu(tensor_parallel) * model.kv_bytes_per_element
    if policy != "topk":
        looked_at = index_bytes_per_entry(policy, model, tensor_parallel)
    scored = 1 / QUEST_PAGE if policy == "quest" else 1.0
    scores = heads * scored * SCORE_PASSES * SCORE_BYTES
    products = 2 * model.num_heads * model.scored_width / tensor_parallel * (2 * scored if policy == "quest" else 1.0)
    return Work(tokens * products, tokens * (looked_at + scores))


def _kept(model: TransformerConfig, context_len: ArrayLike) -> Array:
    """Entries that all layers keep together: those with a window no more than it. [entries]"""
    reaches = ((layers, np.inf if window is None else window) for layers, window in model.reaches)
    return np.asarray(sum(layers * np.minimum(context_len, reach) for layers, reach in reaches), np.float64)


def selects_at_every_step(policy: KvPolicy) -> bool:
    """T_select is not nothing."""
    return policy in ("topk", "quest", "pq")


def select_kernels(policy: KvPolicy) -> int:
    """Kernels launched per layer and draft step to choose entries."""
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
    """What a draft takes beside the target, on one GPU: (KV and index per sequence, weights). [bytes]

    A self draft keeps a compact copy of the entries it reads (policies that choose at every step read the target's own),
    or a compressed copy of all; a smaller model and a prediction head keep a cache of their own, of what they may read.
    """
    network, gpus = draft.network(target), draft.gpus(tensor_parallel)
    if network is None:
        return 0 * max_context_len, 0.0
    entries = np.where(np.isfinite(kv_budget), np.minimum(max_context_len, kv_budget), max_context_len) + gamma
    index = _kept(network, max_context_len) * index_bytes_per_entry(draft.kv_policy, network, gpus)
    if draft.kind == "self":
        copied = draft.kv_dtype is not None or not selects_at_every_step(draft.kv_policy)
        kv = kv_bytes_per_gpu(network, entries, gpus) if copied else 0 * entries
        return kv + index, compressed_copy_bytes(target, network, gpus)
    kept = max_context_len + gamma if selects_at_every_step(draft.kv_policy) else entries
    weights = network.weight_bytes_per_gpu(gpus, head_sharded=head_sharded)
    if draft.kind == "mtp":  # its embedding and head are the target's
        weights -= network.embedding_bytes / (gpus if head_sharded else 1)
    return kv_bytes_per_gpu(network, kept, gpus) + index, weights


def compressed_copy_bytes(target: TransformerConfig, network: TransformerConfig, tensor_parallel: int) -> float:
    """A second, compressed copy of the matrices, for a self draft that reads one. [bytes]"""
    if network.linear_dtype == target.linear_dtype and network.expert_dtype == target.expert_dtype:
        return 0.0
    return sum(matrix.bytes for matrix in network.matrices(tensor_parallel)[:-1])


def kv_bytes_per_gpu(model: TransformerConfig, context_len: ArrayLike, tensor_parallel: int) -> Array:
    """Keys and values of one sequence on one GPU; layers with a window keep no more than it. [bytes]"""
    return _kept(model, context_len) * model.kv_width_per_gpu(tensor_parallel) * model.kv_bytes_per_element
