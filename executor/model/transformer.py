"""The decoder: one Llama-family transformer for training, prefill, decoding, drafting and verification.

These differ only in what a query may attend to, so attention is an argument: `attend`.
Parameters carry the names of Hugging Face checkpoints.

Shapes: B batch, T query tokens, P positions, D model, N query heads, K KV heads, H head dim, V vocabulary.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicdec.costmodel.models.transformer import TransformerConfig

from ..kernels import cpu_bindings
from .attend import Attend, DecoderBackend, RopeTables
from .cpu_decoder import CpuDecoder
from .dtypes import kernels_fit
from .rotary import rope_tables, rotate
from .tensor_parallel import SINGLE_PROCESS, Ranks


def attend_causal(layer: int, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, window: int | None = None) -> Tensor:
    """Causal attention among the new tokens only, without a KV cache: for training and scoring texts. An `Attend`.

    Args:
        layer, q_BNTH, k_BKTH, v_BKTH: As in `Attend`.
        window: Tokens that a query reaches back, its own included; None for all. [tokens]
    """
    grouped = q_BNTH.shape[1] != k_BKTH.shape[1]
    length = q_BNTH.shape[2]
    if window is not None and window < length:
        mask_TT = torch.ones(length, length, dtype=torch.bool, device=q_BNTH.device).tril().triu(1 - window)
        return F.scaled_dot_product_attention(q_BNTH, k_BKTH, v_BKTH, attn_mask=mask_TT, enable_gqa=grouped)
    return F.scaled_dot_product_attention(q_BNTH, k_BKTH, v_BKTH, is_causal=True, enable_gqa=grouped)


class Linear(nn.Linear):
    """A linear layer whose matrix may be stored in a narrower dtype than its input; it is widened when used."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x[..., in] with the transposed matrix; returns [..., out]."""
        return F.linear(x, self.weight.to(x.dtype), self.bias)


class Attention(nn.Module):
    """Projections, rotary embedding and output projection around the attention that `attend` computes."""

    def __init__(self, config: TransformerConfig, layer: int, ranks: Ranks):
        super().__init__()
        self.layer, self.head_dim, self.ranks = layer, config.head_dim, ranks
        self.q_proj = Linear(config.d_model, config.d_attention, bias=config.qkv_bias)
        self.k_proj = Linear(config.d_model, config.d_kv, bias=config.qkv_bias)
        self.v_proj = Linear(config.d_model, config.d_kv, bias=config.qkv_bias)
        self.o_proj = Linear(config.d_attention, config.d_model, bias=False)
        self.q_norm: nn.Module = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm: nn.Module = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, cos_BTH: Tensor, sin_BTH: Tensor, attend: Attend) -> Tensor:
        """Attention block of a layer, without norm and residual; returns [B, T, D]."""
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BNTH = self.q_norm(self.q_proj(x_BTD).view(heads)).transpose(1, 2)
        k_BKTH = self.k_norm(self.k_proj(x_BTD).view(heads)).transpose(1, 2)
        v_BKTH = self.v_proj(x_BTD).view(heads).transpose(1, 2)
        q_BNTH, k_BKTH = rotate(q_BNTH, cos_BTH, sin_BTH), rotate(k_BKTH, cos_BTH, sin_BTH)
        return self.ranks.sum(self.o_proj(attend(self.layer, q_BNTH, k_BKTH, v_BKTH).transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    """Gated MLP with SiLU."""

    def __init__(self, config: TransformerConfig, ranks: Ranks):
        super().__init__()
        self.ranks = ranks
        self.gate_proj = Linear(config.d_model, config.d_ff, bias=False)
        self.up_proj = Linear(config.d_model, config.d_ff, bias=False)
        self.down_proj = Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """MLP block of a layer, without norm and residual; returns [B, T, D]."""
        return self.ranks.sum(self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD)))


class Layer(nn.Module):
    """One decoder layer: attention and MLP, each with a norm before it and a residual around it."""

    def __init__(self, config: TransformerConfig, layer: int, ranks: Ranks):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.self_attn = Attention(config, layer, ranks)
        self.post_attention_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.mlp = Mlp(config, ranks)

    def forward(self, x_BTD: Tensor, cos_BTH: Tensor, sin_BTH: Tensor, attend: Attend) -> Tensor:
        """Hidden states x_BTD after the layer."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos_BTH, sin_BTH, attend)
        after_BTD: Tensor = x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
        return after_BTD


class Stack(nn.Module):
    """Everything but the LM head (`model.` in checkpoint names); computed by torch, it is a `DecoderBackend`."""

    def __init__(self, config: TransformerConfig, ranks: Ranks):
        super().__init__()
        # The initial values of nn.Embedding, whose own constructor would import torch's compiler on the meta device (0.7 s).
        weight_VD = torch.randn(config.vocab_size, config.d_model)
        self.embed_tokens = nn.Embedding.from_pretrained(weight_VD, freeze=False)  # type: ignore[no-untyped-call]
        self.layers = nn.ModuleList(Layer(config, layer, ranks) for layer in range(config.num_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)

    def run(self, tokens_BT: Tensor, positions_BT: Tensor, rope: RopeTables, attend: Attend) -> Tensor:
        """Run all layers and the final norm. See `DecoderBackend.run`."""
        x_BTD = self.embed_tokens(tokens_BT).to(self.norm.weight.dtype)
        cos_BTH, sin_BTH = (table_PH[positions_BT] for table_PH in rope)
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos_BTH, sin_BTH, attend)
        normed_BTD: Tensor = self.norm(x_BTD)
        return normed_BTD

    def greedy_tokens(
        self, tokens_BT: Tensor, positions_BT: Tensor, rope: RopeTables, attend: Attend, vocab_size: int
    ) -> Tensor | None:
        """None: torch has no single call for this. See `DecoderBackend.greedy_tokens`."""
        return None


class Transformer(nn.Module):
    """A decoder of the given configuration, with uninitialised weights on the current default device.

    Weights may be changed in place at any time, but replaced by other tensors only before the first decoding step. On the meta
    device there are no rotary tables until `fill_rope_tables` is called.

    Args:
        whole: The whole model.
        ranks: The processes that share it; each holds a shard.

    Attributes:
        whole: The whole model.
        config: The shard that this process holds; a narrower model, or the whole.
        is_sharded: True if several processes share the model.
        cos_PH, sin_PH: Rotary tables.
    """

    cos_PH: Tensor
    sin_PH: Tensor

    def __init__(self, whole: TransformerConfig, ranks: Ranks = SINGLE_PROCESS):
        super().__init__()
        self.whole = whole
        self.config = config = ranks.shard(whole)
        self.is_sharded = ranks.size > 1
        self.model = Stack(config, ranks)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.register_buffer("cos_PH", torch.empty(0), persistent=False)
        self.register_buffer("sin_PH", torch.empty(0), persistent=False)
        self.to(getattr(torch, config.dtype))
        for module in self.model.layers.modules():
            if isinstance(module, Linear):
                module.weight.data = module.weight.to(getattr(torch, config.linear_dtype or config.dtype))
        for embedding in (self.model.embed_tokens, self.lm_head):
            embedding.weight.data = embedding.weight.to(getattr(torch, config.embedding_dtype or config.dtype))
        if self.device.type != "meta":
            self.fill_rope_tables()
        self._cpu_decoder: CpuDecoder | None = None

    def fill_rope_tables(self) -> None:
        """Compute the rotary tables, in double precision, and move them to the device and dtype of the model."""
        cos_PH, sin_PH = rope_tables(self.config)
        self.cos_PH = cos_PH.to(self.device, self.dtype)
        self.sin_PH = sin_PH.to(self.device, self.dtype)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        weight_VD: Tensor = self.model.embed_tokens.weight
        return weight_VD.device

    @property
    def dtype(self) -> torch.dtype:
        """Of activations and KV cache; matrices may be narrower."""
        return self.model.norm.weight.dtype

    def forward(self, tokens_BT: Tensor, positions_BT: Tensor, attend: Attend | None = None) -> Tensor:
        """Run the decoder up to the final norm.

        Args:
            tokens_BT: Token ids.
            positions_BT: Position of each in its sequence; any shape that broadcasts to that of the tokens. [tokens]
            attend: Attention of every layer; None for causal attention among these tokens only.

        Returns:
            Final hidden states x_BTD, normalised: the input of `logits`.
        """
        attend = attend or partial(attend_causal, window=self.config.sliding_window)
        return self._backend.run(tokens_BT, positions_BT, (self.cos_PH, self.sin_PH), attend)

    def greedy_tokens(self, tokens_BT: Tensor, positions_BT: Tensor, attend: Attend, vocab_size: int) -> Tensor | None:
        """Greedy next token at each position via the fused CPU kernel, or None if it does not apply.

        Args:
            tokens_BT, positions_BT, attend: As in `forward`.
            vocab_size: Only the first `vocab_size` ids are considered.

        Raises:
            FloatingPointError: A logit is infinite or NaN.
        """
        return self._backend.greedy_tokens(tokens_BT, positions_BT, (self.cos_PH, self.sin_PH), attend, vocab_size)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Apply the LM head to final hidden states; returns logits_BTV."""
        weight_VD = self.lm_head.weight
        if x_BTD.dtype == torch.float32 and cpu_bindings.usable(weight_VD):
            return cpu_bindings.linear(x_BTD, weight_VD)
        logits_BTV: Tensor = self.lm_head(x_BTD)
        return logits_BTV

    @property
    def _backend(self) -> DecoderBackend:
        """The fastest backend for the model as it is now: where its weights are, and whether gradients are needed."""
        head_VD = self.lm_head.weight
        if self.is_sharded or self.dtype != torch.float32 or not kernels_fit(self.config) or not cpu_bindings.usable(head_VD):
            return self.model
        if self._cpu_decoder is None:
            stack = self.model
            self._cpu_decoder = CpuDecoder(stack.layers, stack.embed_tokens.weight, stack.norm.weight, head_VD, self.config)
        return self._cpu_decoder
