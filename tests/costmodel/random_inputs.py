"""Random models, hardware and pass shapes for the property tests of the cost model."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any, get_type_hints

import numpy as np
from hypothesis import strategies as st

from magicdec.costmodel.calibration.fitting import bounds_of
from magicdec.costmodel.hardware.profile import Calibration, EngineLaw, HardwareProfile, Peak
from magicdec.costmodel.kernels.attention import AttentionLaw
from magicdec.costmodel.kernels.collectives import AllreduceLaw
from magicdec.costmodel.kernels.gemm import GemmLaw
from magicdec.costmodel.models.architecture import Experts, LatentAttention
from magicdec.costmodel.models.transformer import BYTES_PER_ELEMENT, TransformerConfig

MODEL_KINDS = ("dense", "sliding", "half sliding", "experts", "latent")


@st.composite
def models(draw: st.DrawFn, kinds: tuple[str, ...] = MODEL_KINDS) -> TransformerConfig:
    """A random model: dense, with sliding windows, with experts, or with latent attention and experts."""
    kind = draw(st.sampled_from(kinds))
    kv_heads, group = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from([1, 2, 4, 8]))
    num_layers = draw(st.integers(2, 80))
    num_experts = draw(st.sampled_from([2, 8, 128]))
    experts = Experts(
        num_experts=num_experts,
        experts_per_token=draw(st.integers(1, min(num_experts, 8))),
        d_ff=draw(st.integers(64, 8192)),
        d_ff_shared=draw(st.sampled_from([0, 64, 2048])),
        num_dense_layers=draw(st.integers(0, num_layers - 1)),
        bias=draw(st.booleans()),
    )
    latent = LatentAttention(
        kv_rank=draw(st.integers(16, 512)),
        rope_dim=draw(st.sampled_from([16, 64])),
        nope_dim=draw(st.sampled_from([32, 128])),
        value_dim=draw(st.sampled_from([32, 128])),
        q_rank=draw(st.sampled_from([None, 64, 1536])),
    )
    return TransformerConfig(
        name=f"random {kind}",
        family="llama",
        num_layers=num_layers,
        d_model=draw(st.integers(64, 8192)),
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=latent.nope_dim + latent.rope_dim if kind == "latent" else draw(st.sampled_from([64, 128])),
        d_ff=draw(st.integers(64, 30_000)),
        vocab_size=draw(st.integers(256, 200_000)),
        max_context_len=131_072,
        tied_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        sliding_window=draw(st.sampled_from([2, 128, 4096])) if "sliding" in kind else None,
        num_window_layers=draw(st.integers(1, num_layers)) if kind == "half sliding" else None,
        experts=experts if kind in ("experts", "latent") else None,
        latent=latent if kind == "latent" else None,
        embedding_dtype=draw(st.sampled_from([None, "float32"])),
        linear_dtype=draw(st.sampled_from([None, "fp8", "int4"])),
        expert_dtype=draw(st.sampled_from([None, "fp8", "mxfp4"])),
        kv_dtype=draw(st.sampled_from([None, "fp8", "int4"])),
    )


@cache
def _hints(law: type) -> dict[str, Any]:
    return get_type_hints(law)


@st.composite
def laws(draw: st.DrawFn, law: type, **fixed: Any) -> Any:
    """A kernel law with all parameters within their physical ranges."""
    values: dict[str, Any] = {}
    hints = _hints(law)
    for field in fields(law):
        hint = hints[field.name]
        if hint is bool:
            values[field.name] = draw(st.booleans())
            continue
        low, high = bounds_of(law, field.name)
        values[field.name] = draw(st.integers(int(low), int(high)) if hint is int else st.floats(low, high))
    return law(**{**values, **fixed})


@st.composite
def machines(draw: st.DrawFn, **attention: Any) -> HardwareProfile:
    """Random peaks and kernel laws; parameters of the attention law may be fixed."""
    rates = {"float32": draw(st.floats(1e12, 1e14)), "bfloat16": draw(st.floats(1e14, 5e15))}
    rates |= {"fp8": draw(st.floats(1e14, 1e16))} if draw(st.booleans()) else {}
    peak = Peak(
        flop_per_s=rates,
        memory_bandwidth_bytes_per_s=draw(st.floats(1e11, 1e13)),
        memory_bytes=8e10,
        interconnect_bandwidth_bytes_per_s=draw(st.floats(1e10, 1e12)),
        num_sms=draw(st.integers(1, 300)),
        l2_cache_bytes=4e7,
    )
    engine = draw(laws(EngineLaw, draft_step_s=0.0, draft_sequence_s=0.0))
    calibration = Calibration(draw(laws(GemmLaw)), draw(laws(AttentionLaw, **attention)), draw(laws(AllreduceLaw)), engine)
    return HardwareProfile("random", "", peak, calibration)


@st.composite
def pass_shapes(draw: st.DrawFn, most_queries: int = 2000) -> dict[str, Any]:
    """Batch, new tokens, context and budget of one pass."""
    return {
        "batch_size": draw(st.integers(1, 512)),
        "query_len": draw(st.integers(1, most_queries)),
        "context_len": draw(st.integers(0, 131_072)),
        "kv_budget": draw(st.sampled_from([64.0, 512.0, np.inf])),
    }


def gpus_for(model: TransformerConfig) -> list[int]:
    """Numbers of GPUs that split the heads of a model evenly."""
    return [gpus for gpus in (1, 2, 4, 8) if model.num_heads % gpus == 0]


DTYPES = tuple(BYTES_PER_ELEMENT)


def active_params(model: TransformerConfig) -> int:
    """Parameters that one token uses, from the definition: all but those of idle experts."""
    idle = sum(matrix.params * (1 - matrix.used / matrix.experts) for matrix in model.matrices())
    moe = model.experts
    if moe is not None and moe.bias:
        layers = model.num_layers - moe.num_dense_layers
        idle += layers * (moe.num_experts - moe.experts_per_token) * (2 * moe.d_ff + model.d_model)
    return model.params - round(idle)
