"""The reference decoder: one Llama-family transformer for training, prefill, decoding, drafting and verification.

What differs between those is only what a query may attend to, so that is an argument: `attend`.
Parameters carry the names of Hugging Face checkpoints.

Shapes: B batch, T query tokens, S cached tokens, D model, N query heads, K KV heads, H head dim, V vocabulary, F MLP width.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicdec.costmodel.models.architecture import RopeScaling
from magicdec.costmodel.models.transformer import TransformerConfig

from ..kernels import cpu_bindings
from .attend import Attend, DecoderBackend, RopeTables
from .cpu_decoder import CpuDecoder
from .dtypes import kernels_fit
from .tensor_parallel import SINGLE_PROCESS, Ranks


def attend_causal(layer: int, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, window: int | None = None) -> Tensor:
    """Causal attention among the new tokens alone: training, and prompts read without a cache."""
    grouped = q_BNTH.shape[1] != k_BKTH.shape[1]
    length = q_BNTH.shape[2]
    if window is not None and window < length:
        mask_TT = torch.ones(length, length, dtype=torch.bool, device=q_BNTH.device).tril().triu(1 - window)
        return F.scaled_dot_product_attention(q_BNTH, k_BKTH, v_BKTH, attn_mask=mask_TT, enable_gqa=grouped)
    return F.scaled_dot_product_attention(q_BNTH, k_BKTH, v_BKTH, is_causal=True, enable_gqa=grouped)


class Linear(nn.Linear):
    """A product whose matrix may be stored in a narrower type than what it is multiplied with, to which it is widened."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias)


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig, layer: int, ranks: Ranks):
        super().__init__()
        self.layer, self.head_dim, self.ranks = layer, config.head_dim, ranks
        self.q_proj = Linear(config.d_model, config.d_attention, bias=config.qkv_bias)
        self.k_proj = Linear(config.d_model, config.d_kv, bias=config.qkv_bias)
        self.v_proj = Linear(config.d_model, config.d_kv, bias=config.qkv_bias)
        self.o_proj = Linear(config.d_attention, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
        else:
            self.q_norm = self.k_norm = nn.Identity()

    def forward(self, x_BTD: Tensor, cos_BTH: Tensor, sin_BTH: Tensor, attend: Attend) -> Tensor:
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BNTH = self.q_norm(self.q_proj(x_BTD).view(heads)).transpose(1, 2)
        k_BKTH = self.k_norm(self.k_proj(x_BTD).view(heads)).transpose(1, 2)
        v_BKTH = self.v_proj(x_BTD).view(heads).transpose(1, 2)
        q_BNTH, k_BKTH = rotate(q_BNTH, cos_BTH, sin_BTH), rotate(k_BKTH, cos_BTH, sin_BTH)
        return self.ranks.sum(self.o_proj(attend(self.layer, q_BNTH, k_BKTH, v_BKTH).transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    def __init__(self, config: TransformerConfig, ranks: Ranks):
        super().__init__()
        self.ranks = ranks
        self.gate_proj = Linear(config.d_model, config.d_ff, bias=False)
        self.up_proj = Linear(config.d_model, config.d_ff, bias=False)
        self.down_proj = Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.ranks.sum(self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD)))


class Layer(nn.Module):
    def __init__(self, config: TransformerConfig, layer: int, ranks: Ranks):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.self_attn = Attention(config, layer, ranks)
        self.post_attention_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.mlp = Mlp(config, ranks)

    def forward(self, x_BTD: Tensor, cos_BTH: Tensor, sin_BTH: Tensor, attend: Attend) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos_BTH, sin_BTH, attend)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Stack(nn.Module):
    """Everything but the LM head; it is `model.` in checkpoint names."""

    def __init__(self, config: TransformerConfig, ranks: Ranks):
        super().__init__()
        # What nn.Embedding begins with; itself, it would import torch's compiler on the meta device, for most of a second.
        self.embed_tokens = nn.Embedding.from_pretrained(torch.randn(config.vocab_size, config.d_model), freeze=False)
        self.layers = nn.ModuleList(Layer(config, layer, ranks) for layer in range(config.num_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)

    def run(self, tokens_BT: Tensor, positions_BT: Tensor, rope: RopeTables, attend: Attend) -> Tensor:
        """Final hidden states x_BTD, normalised. `rope` holds cosine and sine of every position."""
        x_BTD = self.embed_tokens(tokens_BT).to(self.norm.weight.dtype)
        cos_BTH, sin_BTH = (table_SH[positions_BT] for table_SH in rope)
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos_BTH, sin_BTH, attend)
        normed: Tensor = self.norm(x_BTD)
        return normed

    def greedy_tokens(
        self, tokens_BT: Tensor, positions_BT: Tensor, rope: RopeTables, attend: Attend, vocab_size: int
    ) -> Tensor | None:
        """None: torch has no call that does all of this at once."""
        return None


class Transformer(nn.Module):
    """A decoder of the given configuration, with uninitialised weights on the current default device.

    Weights may be changed in place at any time, but replaced by others only before the first decoding step. On the meta device
    it has no rotary tables until `fill_rope_tables`.

    Attributes:
        whole: What it is built from.
        config: What of it this process holds, a narrower model if several share it; else all.
        is_sharded: Several processes hold a part of it each.
    """

    cos_SH: Tensor
    sin_SH: Tensor

    def __init__(self, whole: TransformerConfig, ranks: Ranks = SINGLE_PROCESS):
        super().__init__()
        self.whole = whole
        self.config = config = ranks.shard(whole)
        self.model = Stack(config, ranks)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.register_buffer("cos_SH", torch.empty(0), persistent=False)
        self.register_buffer("sin_SH", torch.empty(0), persistent=False)
        self.to(getattr(torch, config.dtype))
        for module in self.model.layers.modules():
            if isinstance(module, Linear):
                module.weight.data = module.weight.to(getattr(torch, config.linear_dtype or config.dtype))
        for embedding in (self.model.embed_tokens, self.lm_head):
            embedding.weight.data = embedding.weight.to(getattr(torch, config.embedding_dtype or config.dtype))
        if self.device.type != "meta":
            self.fill_rope_tables()
        self.is_sharded = ranks.size > 1
        self._cpu_decoder: CpuDecoder | None = None

    def fill_rope_tables(self) -> None:
        """Compute the rotary tables, in double precision, on the device of the weights."""
        cos_SH, sin_SH = rope_tables(self.config)
        self.cos_SH = cos_SH.to(self.device, self.dtype)
        self.sin_SH = sin_SH.to(self.device, self.dtype)

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of activations and KV cache."""
        return self.model.norm.weight.dtype

    def forward(self, tokens_BT: Tensor, positions_BT: Tensor, attend: Attend | None = None) -> Tensor:
        """Final hidden states, normalised: the input of `logits`.

        Args:
            tokens_BT: Token ids.
            positions_BT: Position of each in its sequence; any shape that broadcasts to that of the tokens. [tokens]
            attend: What the queries of a layer see; None for causal attention among these tokens alone.

        Returns:
            x_BTD.
        """
        attend = attend or partial(attend_causal, window=self.config.sliding_window)
        return self._backend.run(tokens_BT, positions_BT, (self.cos_SH, self.sin_SH), attend)

    def greedy_tokens(self, tokens_BT: Tensor, positions_BT: Tensor, attend: Attend, vocab_size: int) -> Tensor | None:
        """Greedy next token at each position via the fused CPU kernel, or None if it does not apply.

        Args:
            tokens_BT, positions_BT, attend: As in `forward`.
            vocab_size: Only the first `vocab_size` ids are considered.

        Raises:
            FloatingPointError: A logit is infinite or NaN.
        """
        return self._backend.greedy_tokens(tokens_BT, positions_BT, (self.cos_SH, self.sin_SH), attend, vocab_size)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """logits_BTV of hidden states."""
        weight_VD = self.lm_head.weight
        if x_BTD.dtype == torch.float32 and cpu_bindings.usable(weight_VD):
            return cpu_bindings.linear(x_BTD, weight_VD)
        logits_BTV: Tensor = self.lm_head(x_BTD)
        return logits_BTV

    @property
    def _backend(self) -> DecoderBackend:
        """The fastest backend that can compute the layers as they are now."""
        head_VD = self.lm_head.weight
        if self.is_sharded or self.dtype != torch.float32 or not kernels_fit(self.config) or not cpu_bindings.usable(head_VD):
            return self.model
        if self._cpu_decoder is None:
            stack = self.model
            self._cpu_decoder = CpuDecoder(stack.layers, stack.embed_tokens.weight, stack.norm.weight, head_VD, self.config)
        return self._cpu_decoder


def rotate(x_BNTH: Tensor, cos_BTH: Tensor, sin_BTH: Tensor) -> Tensor:
    """Rotary position embedding, in the half-split layout of Hugging Face checkpoints.

    Source:
        RoFormer (arXiv 2104.09864), eq. 34.
    """
    cos, sin = cos_BTH.unsqueeze(-3), sin_BTH.unsqueeze(-3)
    first, second = x_BNTH.chunk(2, dim=-1)
    return x_BNTH * cos + torch.cat((-second, first), dim=-1) * sin


def rope_tables(config: TransformerConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position the model knows, each of shape [max_context_len, head_dim]."""
    frequencies, factor = rope_frequencies(config)
    angles_SH = torch.outer(torch.arange(config.max_context_len, dtype=torch.float64), frequencies).repeat(1, 2)
    return (angles_SH.cos() * factor), (angles_SH.sin() * factor)


def rope_frequencies(config: TransformerConfig) -> tuple[Tensor, float]:
    """Angular frequency of each pair of dimensions [rad/token], and the factor on cosine and sine.

    Source:
        RoFormer (arXiv 2104.09864); Llama 3.1 and YaRN (arXiv 2309.00071) stretching as in Hugging Face checkpoints.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    plain = config.rope_theta**-exponents
    scaling = config.rope_scaling
    if scaling is None:
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    original = scaling.original_context_len or config.max_context_len
    if scaling.kind == "llama3":
        turns = original * plain / (2 * math.pi)
        kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        kept = kept.clamp(0, 1)
        return plain * kept + plain / scaling.factor * (1 - kept), 1.0
    return _yarn_frequencies(config, scaling, plain, original)


def _yarn_frequencies(config: TransformerConfig, scaling: RopeScaling, plain: Tensor, original: int) -> tuple[Tensor, float]:
    def dimension_of(turns: float) -> float:
        return config.head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(dimension_of(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension_of(scaling.beta_slow)), config.head_dim - 1)
    ramp = (torch.arange(config.head_dim // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)
    kept = 1 - ramp.clamp(0, 1)
    factor = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0
    return plain * kept + plain / scaling.factor * (1 - kept), factor
