"""Interfaces between the decoder, the attention it is given and the backends that compute its layers.

Shapes: B batch, T query tokens, N query heads, K KV heads, H head dim, D model, P positions.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

RopeTables = tuple[Tensor, Tensor]  # cosine and sine of every position, each [P, H]


class Attend(Protocol):
    """Attention of one layer: what its queries see. It may store the new keys and values, and chooses which others are read."""

    def __call__(self, layer: int, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor) -> Tensor:
        """Compute the attention output of a layer.

        Args:
            layer: Index of the layer.
            q_BNTH: Queries, after the rotary embedding.
            k_BKTH, v_BKTH: Keys, after the rotary embedding, and values of the same tokens.

        Returns:
            A tensor of the shape of `q_BNTH`.
        """
        ...


class DecoderBackend(Protocol):
    """Computes the layers of a decoder: with torch (`transformer.Stack`) or with the C kernels (`cpu_decoder.CpuDecoder`)."""

    def run(self, tokens_BT: Tensor, positions_BT: Tensor, rope: RopeTables, attend: Attend) -> Tensor:
        """Run all layers and the final norm.

        Args:
            tokens_BT: Token ids.
            positions_BT: Their positions; any shape that broadcasts to that of the tokens. [tokens]
            rope: Rotary tables.
            attend: Attention of every layer.

        Returns:
            Final hidden states x_BTD, normalised.
        """
        ...

    def greedy_tokens(
        self, tokens_BT: Tensor, positions_BT: Tensor, rope: RopeTables, attend: Attend, vocab_size: int
    ) -> Tensor | None:
        """Run the layers, the LM head and argmax in one call, if this backend can do so for this attention.

        Args:
            tokens_BT, positions_BT, rope, attend: As in `run`.
            vocab_size: Only the first `vocab_size` ids are considered.

        Returns:
            Greedy next token at each position, or None if this backend has no such call.

        Raises:
            FloatingPointError: A logit is infinite or NaN.
        """
        ...
