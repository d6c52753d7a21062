"""Layers that keep a state of constant size: linear attention, state space models, short convolutions."""

from __future__ import annotations

from dataclasses import dataclass

from .weights import Weight


@dataclass(frozen=True, repr=False)
class Recurrent:
    """A layer with a state instead of a KV cache.

    Every token reads the whole state and writes it again. To take back draft tokens, an engine must keep the state after each.

    Attributes:
        kind: Name of the kind, for people.
        projections: Its matrices.
        heads: Heads of the state, which tensor parallelism divides.
        state_elements: Elements of the state, in the model's state dtype.
        conv_channels, conv_kernel: Short convolution before the state: its last inputs are kept too; 0 for none.
        flop_per_token: Products with the state, 2 FLOP per multiply-add, the convolution included. [FLOP]
        vectors: Parameters that are no matrices: convolutions, decays, norms, biases.
    """

    kind: str
    projections: tuple[Weight, ...]
    heads: int
    state_elements: int
    conv_channels: int
    conv_kernel: int
    flop_per_token: int
    vectors: int

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        """Matrices of one layer."""
        return self.projections

    def vector_params(self, d_model: int) -> int:
        """Parameters that are no matrices."""
        return self.vectors

    @property
    def conv_elements(self) -> int:
        """Elements kept for the convolution, in the activations' dtype."""
        return self.conv_channels * self.conv_kernel

    @property
    def title(self) -> str:
        """Name of the kind, for people."""
        return self.kind


def gated_delta_net(d_model: int, *, key_heads: int, value_heads: int, key_dim: int, value_dim: int, kernel: int) -> Recurrent:
    """Gated DeltaNet, as in Qwen3-Next (arXiv 2412.06464): a matrix per value head, corrected by each token."""
    keys, values = key_heads * key_dim, value_heads * value_dim
    channels = 2 * keys + values
    return Recurrent(
        kind="gated delta net",
        projections=(
            Weight("in_qkvz", channels + values, d_model),
            Weight("in_ba", 2 * value_heads, d_model, role="router"),
            Weight("out", d_model, values, split="inputs"),
        ),
        heads=value_heads,
        state_elements=value_heads * key_dim * value_dim,
        conv_channels=channels,
        conv_kernel=kernel,
        flop_per_token=6 * value_heads * key_dim * value_dim + 2 * channels * kernel,
        vectors=channels * kernel + 2 * value_heads + value_dim,
    )


def kimi_delta(d_model: int, *, heads: int, head_dim: int, kernel: int, full_rank_gate: bool = False) -> Recurrent:
    """Kimi Delta Attention (arXiv 2510.26692): a gated delta rule with a decay per channel."""
    width = heads * head_dim
    gates: tuple[Weight, ...] = (Weight("in_gate", width, d_model),)
    if not full_rank_gate:
        gates = (Weight("gate_down", head_dim, d_model, split="none"), Weight("gate_up", width, head_dim))
    return Recurrent(
        kind="Kimi delta attention",
        projections=(
            Weight("in_qkv", 3 * width, d_model),
            Weight("decay_down", head_dim, d_model, split="none"),
            Weight("decay_up", width, head_dim),
            Weight("in_beta", heads, d_model, role="router"),
            *gates,
            Weight("out", d_model, width, split="inputs"),
        ),
        heads=heads,
        state_elements=heads * head_dim * head_dim,
        conv_channels=3 * width,
        conv_kernel=kernel,
        flop_per_token=6 * heads * head_dim * head_dim + 2 * 3 * width * kernel,
        vectors=3 * width * kernel + width + heads + head_dim,
    )


def mamba2(
    d_model: int,
    *,
    heads: int,
    head_dim: int,
    groups: int,
    state: int,
    kernel: int,
    conv_bias: bool = True,
    bias: bool = False,
    norm: bool = True,
) -> Recurrent:
    """Mamba-2 (arXiv 2405.21060): a state of `head_dim` x `state` per head."""
    inner = heads * head_dim
    channels = inner + 2 * groups * state
    projected = inner + channels + heads
    return Recurrent(
        kind="Mamba-2",
        projections=(Weight("in", projected, d_model), Weight("out", d_model, inner, split="inputs")),
        heads=heads,
        state_elements=inner * state,
        conv_channels=channels,
        conv_kernel=kernel,
        flop_per_token=4 * inner * state + 2 * channels * kernel,
        vectors=channels * (kernel + conv_bias) + 3 * heads + (inner if norm else 0) + (projected + d_model if bias else 0),
    )


def mamba1(
    d_model: int,
    *,
    inner: int,
    state: int,
    kernel: int,
    rank: int,
    conv_bias: bool = True,
    bias: bool = False,
    norms: bool = False,
) -> Recurrent:
    """Mamba (arXiv 2312.00752): a state of `state` elements per channel."""
    return Recurrent(
        kind="Mamba",
        projections=(
            Weight("in", 2 * inner, d_model),
            Weight("x", rank + 2 * state, inner, split="inputs"),
            Weight("dt", inner, rank),
            Weight("out", d_model, inner, split="inputs"),
        ),
        heads=inner,
        state_elements=inner * state,
        conv_channels=inner,
        conv_kernel=kernel,
        flop_per_token=4 * inner * state + 2 * inner * kernel,
        vectors=inner * (kernel + conv_bias + state + 2)
        + (rank + 2 * state if norms else 0)
        + (2 * inner + d_model if bias else 0),
    )


def lightning(d_model: int, *, heads: int, head_dim: int) -> Recurrent:
    """Lightning attention (arXiv 2401.04658), as in MiniMax-01: linear attention with a fixed decay and an output gate."""
    width = heads * head_dim
    return Recurrent(
        kind="lightning attention",
        projections=(
            Weight("qkv", 3 * width, d_model),
            Weight("o_gate", width, d_model),
            Weight("out", d_model, width, split="inputs"),
        ),
        heads=heads,
        state_elements=heads * head_dim * head_dim,
        conv_channels=0,
        conv_kernel=0,
        flop_per_token=4 * heads * head_dim * head_dim,
        vectors=width,
    )


def short_convolution(d_model: int, *, kernel: int, bias: bool = False) -> Recurrent:
    """Gated short convolution, as in LFM2 (arXiv 2511.23404)."""
    return Recurrent(
        kind="short convolution",
        projections=(Weight("in", 3 * d_model, d_model), Weight("out", d_model, d_model, split="inputs")),
        heads=d_model,
        state_elements=0,
        conv_channels=d_model,
        conv_kernel=kernel,
        flop_per_token=2 * d_model * kernel,
        vectors=d_model * kernel + (5 * d_model if bias else 0),
    )
