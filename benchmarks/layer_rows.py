"""Reads the published layers of `published_layers.py`, and prices each row as a part of a model of one layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from magicdec.costmodel.calibration.kernel_tables import SYSTEMS
from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.layers.attention import Attention, AttentionKind
from magicdec.costmodel.layers.layer import Layer, LayerGroup
from magicdec.costmodel.layers.mlp import ExpertMlp
from magicdec.costmodel.layers.recurrent import Recurrent, gated_delta_net, kimi_delta
from magicdec.costmodel.layers.weights import Weight
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.passes.forward import NO_WORK, Cost, forward_cost
from magicdec.costmodel.passes.roofline import step_time

Columns: TypeAlias = dict[str, NDArray[np.generic]]
Floats: TypeAlias = NDArray[np.float64]
Part = Literal["products", "experts", "attention", "block", "state"]
ENGINES = ("vllm", "sglang", "trtllm")
# What the tables call the types of weights: ours, and what we call the row.
WEIGHTS = {
    "bfloat16": ("bfloat16", "16 bits"),
    "float16": ("bfloat16", "16 bits"),
    "fp8": ("fp8", "fp8"),
    "fp8_block": ("fp8", "fp8 blocks"),
    "nvfp4": ("nvfp4", "nvfp4"),
    "w4a16_mxfp4": ("mxfp4", "mxfp4, 16-bit activations"),
    "w4a8_mxfp4_mxfp8": ("mxfp4", "mxfp4, 8-bit activations"),
    "int4_wo": ("int4", "int4, 16-bit activations"),
}
MODELS = {"deepseek-ai/DeepSeek-V3": "deepseek-v3", "deepseek-ai/DeepSeek-V3.2": "deepseek-v3.2-bf16", "zai-org/GLM-5": "glm-5-fp8",
          "sgl-project/DeepSeek-V4-Flash-FP8": "deepseek-v4-flash", "sgl-project/DeepSeek-V4-Pro-FP8": "deepseek-v4-pro-fp8",
          "MiniMaxAI/MiniMax-M3": "minimax-m3"}  # fmt: skip
KINDS = {  # name of each kind: folder and table
    "products": ("gemm", "gemm_perf"),
    "attention, prompt": ("attention", "context_attention_perf"),
    "experts": ("moe", "moe_perf"),
    "latent attention, decoding": ("mla", "generation_mla_perf"),
    "latent attention, prompt": ("mla", "context_mla_perf"),
    "latent block, decoding": ("mla", "mla_generation_module_perf"),
    "latent block, prompt": ("mla", "mla_context_module_perf"),
    "chosen entries block, decoding": ("sparse_attention", "dsa_generation_module_perf"),
    "chosen entries block, prompt": ("sparse_attention", "dsa_context_module_perf"),
    "compressed 4:1 block, decoding": ("sparse_attention", "dsv4_csa_generation_module_perf"),
    "compressed 128:1 block, decoding": ("sparse_attention", "dsv4_hca_generation_module_perf"),
    "chosen blocks block, decoding": ("msa", "msa_generation_module_perf"),
    "Gated DeltaNet": ("linear_attention", "gdn_perf"),
    "Kimi delta attention": ("kda", "kda_perf"),
}
PHASES = {"generation": "decoding", "context": "prompt", "verify": "verification"}


@dataclass(frozen=True)
class Priced:
    """Rows of one table, priced.

    Attributes:
        kind: Kind of layer, and phase.
        machine: Hardware profile.
        engine: Engine that was measured.
        dtype: Type of the weights.
        tokens: New tokens of the pass.
        predicted_s, measured_s: Time. [s]
    """

    kind: str
    machine: str
    engine: str
    dtype: str
    tokens: Floats
    predicted_s: Floats
    measured_s: Floats


def priced_rows(folder: Path, system: str, engine: str, kinds: Sequence[str]) -> Iterator[Priced]:
    """Price all rows of one system and engine.

    Args:
        folder: `systems/data` of aiconfigurator-core.
        system: A key of `SYSTEMS`.
        engine: One of `ENGINES`.
        kinds: Keys of `KINDS`.
    """
    profile = resolve_profile("a100-sxm-80gb-vllm" if system == "a100_sxm" else SYSTEMS[system].profile)
    for kind in kinds:
        part, name = KINDS[kind]
        columns = read(folder / system / part / engine, name)
        if columns is None:
            continue
        price = PRICES.get(part, _attentions)
        for found in price(columns, kind, profile):
            yield replace(found, engine=engine)


def read(folder: Path, name: str) -> Columns | None:
    """The newest version of a table; None if there is none."""
    files = list(folder.glob(f"*/{name}.parquet"))
    if not files:
        return None
    import pyarrow.parquet as parquet

    table = parquet.read_table(max(files, key=lambda file: [int(number) for number in re.findall(r"\d+", file.parent.name)]))
    columns: Columns = {}
    for column in table.column_names:
        values = table[column].to_numpy()
        columns[column] = values.astype(np.str_ if values.dtype == object else values.dtype)
    return columns


def one_layer(layer: Layer, d_model: int, **dtypes: str) -> TransformerConfig:
    """A model of one layer."""
    return TransformerConfig(
        "one layer", "", 1, d_model, 1, 1, 1, 1, vocab_size=1, max_context_len=1, groups=(LayerGroup(layer, 1),), **dtypes
    )  # type: ignore[arg-type]  # dtypes are texts


def part_of(cost: Cost, part: Part) -> Cost:
    """What a published row measures of a pass: without the head, its logits, and the other half of the layer."""
    kept = {
        "experts": lambda name: name.startswith("expert_"),
        "products": lambda name: name == "one",
        "block": lambda name: name != "head",
    }.get(part, lambda name: False)
    products = tuple(products for products in cost.products if kept(products.matrix.name))
    cost = replace(cost, products=products, logits_bytes=np.zeros(()))
    if part == "block":
        return cost
    cost = replace(cost, num_layers=0.0, elementwise=NO_WORK, attentions=cost.attentions if part == "attention" else ())
    return cost if part == "state" else replace(cost, state=NO_WORK, num_state_layers=0)


def _seconds(model: TransformerConfig, part: Part, profile: HardwareProfile, gpus: int = 1, **shape: Floats | int) -> Floats:
    cost = part_of(forward_cost(model, tensor_parallel=gpus, **shape), part)  # type: ignore[arg-type]
    return np.asarray(step_time(replace(cost, num_allreduces=0), profile, model.dtype).total_s)


def _groups(columns: Columns, names: Sequence[str]) -> Iterator[tuple[list[str], NDArray[np.intp]]]:
    """Rows that are equal in some columns, and what they have there."""
    keys = np.stack([columns[name].astype(np.str_) for name in names], axis=1)
    values, of = np.unique(keys, axis=0, return_inverse=True)
    for number, value in enumerate(values.tolist()):
        yield value, np.flatnonzero(of.ravel() == number)


def _numbers(columns: Columns, name: str, kept: NDArray[np.intp]) -> Floats:
    return columns[name][kept].astype(np.float64)


def _products(columns: Columns, kind: str, profile: HardwareProfile) -> Iterator[Priced]:
    """Products with one matrix of at least 1024 x 1024."""
    for (dtype, outputs, inputs), kept in _groups(columns, ["gemm_dtype", "n", "k"]):
        if dtype not in WEIGHTS or min(int(outputs), int(inputs)) < 1024:
            continue
        stored, title = WEIGHTS[dtype]
        layer = Layer(extra=(Weight("one", int(outputs), int(inputs)),), norms=1)
        tokens = _numbers(columns, "m", kept)
        model = one_layer(layer, int(inputs), linear_dtype=stored)
        predicted = _seconds(model, "products", profile, batch_size=tokens, query_len=1, context_len=0)
        yield Priced(f"{kind}, {title}", profile.name, "", title, tokens, predicted, _numbers(columns, "latency", kept) * 1e-3)


def _experts(columns: Columns, kind: str, profile: HardwareProfile) -> Iterator[Priced]:
    """Experts on one GPU, or each split over several."""
    names = ["moe_ep_size", "moe_dtype", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "kernel_source"]
    for (ep, dtype, hidden, inter, used, count, gpus, kernel), kept in _groups(columns, names):
        if ep != "1" or dtype not in WEIGHTS:
            continue
        stored, title = WEIGHTS[dtype]
        mlp = ExpertMlp(int(count), int(used), int(inter), gated="nongated" not in kernel)
        tokens = _numbers(columns, "num_tokens", kept)
        model = one_layer(Layer(mlp=mlp), int(hidden), expert_dtype=stored)
        predicted = _seconds(model, "experts", profile, int(gpus), batch_size=tokens, query_len=1, context_len=0)
        yield Priced(kind, profile.name, "", title, tokens, predicted, _numbers(columns, "latency", kept) * 1e-3)


def _attentions(columns: Columns, kind: str, profile: HardwareProfile) -> Iterator[Priced]:
    """Attention alone, or with its projections."""
    part: Part = "block" if "block" in kind else "attention"
    for name, value in (("model", "deepseek-ai/DeepSeek-V3"), ("gemm_type", "bfloat16"), ("op_name", ""), ("compress_ratio", "0")):
        columns.setdefault(name, np.full(len(columns["latency"]), value))
    if dense := "num_key_value_heads" in columns:
        usual = (columns["head_dim"] == 128) & (columns["window_size"] == 0 if "window_size" in columns else True)
        columns = {name: values[usual] for name, values in columns.items()}
        columns["model"] = columns["num_key_value_heads"].astype(np.str_)
    names = ["model", "num_heads", "kv_cache_dtype", "gemm_type", "compress_ratio", "op_name"]
    for (name, heads, kv_dtype, weights, ratio, operation), kept in _groups(columns, names):
        if not (dense or name in MODELS) or weights not in WEIGHTS or "skip_indexer" in operation:
            continue
        config = resolve_model(MODELS.get(name, "llama-3.1-8b"))
        attention = replace(_attention(config, int(ratio)), heads=int(heads))
        if dense and isinstance(attention, Attention):
            attention = replace(attention, kv_heads=int(name))
        stored, title = WEIGHTS[weights]
        kv = "fp8" if "fp8" in kv_dtype else "bfloat16"
        model = one_layer(Layer(attention=attention, norms=1), config.d_model, linear_dtype=stored, kv_dtype=kv)
        batch, new, step = (_numbers(columns, column, kept) for column in ("batch_size", "isl", "step"))
        predicted = _seconds(model, part, profile, batch_size=batch, query_len=new, context_len=step)
        yield Priced(kind, profile.name, "", title, batch * new, predicted, _numbers(columns, "latency", kept) * 1e-3)


def _attention(config: TransformerConfig, ratio: int) -> AttentionKind:
    """The kind of attention of which a model has most layers, or the one that compresses by this ratio, or that has an indexer."""
    kinds = [kind for kind, _ in config.attentions if not ratio or getattr(kind, "ratio", 0) == ratio]
    return next((kind for kind in kinds if kind.index is not None), kinds[0])


def _states(columns: Columns, kind: str, profile: HardwareProfile) -> Iterator[Priced]:
    """The convolution and the recurrence of a layer, which are rows of their own."""
    makers: dict[str, tuple[Callable[..., Recurrent], dict[str, str]]] = {
        "Gated DeltaNet": (gated_delta_net, {"key_heads": "num_k_heads", "value_heads": "num_v_heads", "key_dim": "head_k_dim",
                                             "value_dim": "head_v_dim", "kernel": "d_conv"}),
        "Kimi delta attention": (kimi_delta, {"heads": "num_v_heads", "head_dim": "head_v_dim", "kernel": "d_conv"}),
    }  # fmt: skip
    make, arguments = makers[kind]
    for (phase, width, *sizes), kept in _groups(columns, ["phase", "d_model", *arguments.values()]):
        shapes = np.stack([_numbers(columns, name, kept) for name in ("batch_size", "seq_len")], axis=1)
        convolution = np.char.startswith(columns["kernel_source"][kept].astype(np.str_), "causal_conv1d")
        seconds, times = _numbers(columns, "latency", kept) * 1e-3, []
        unique = np.unique(shapes, axis=0)
        for shape in unique:
            here = (shapes == shape).all(axis=1)
            pair = [seconds[here & convolution], seconds[here & ~convolution]]
            times.append(sum(np.median(part) for part in pair) if all(len(part) for part in pair) else np.nan)
        measured = np.asarray(times, np.float64)
        both, whole = np.isfinite(measured), {name: int(size) for name, size in zip(arguments, sizes, strict=True)}
        if not both.any():
            continue
        model = one_layer(Layer(recurrent=make(int(width), **whole), norms=1), int(width), state_dtype="float32")
        batch, new = unique[both].T
        ends = {} if phase == "verify" else {"logits_len": 1}
        predicted = _seconds(model, "state", profile, batch_size=batch, query_len=new, context_len=0, **ends)
        title = f"{kind}, {PHASES[phase]}"
        yield Priced(title, profile.name, "", "16 bits", batch * new, predicted, measured[both])


PRICES: dict[str, Callable[[Columns, str, HardwareProfile], Iterator[Priced]]] = {
    "gemm": _products,
    "moe": _experts,
    "linear_attention": _states,
    "kda": _states,
}
