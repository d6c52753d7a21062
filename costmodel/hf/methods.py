"""Quantisation methods whose block says one type for all linear layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ..layers.dtypes import integer_dtype
from .keys import Keys

INTEGERS = ("awq", "awq_marlin", "gptq", "gptq_marlin", "gptqmodel", "moe_wna16", "auto-round", "auto_round", "intel/auto-round")
BYTES = {"eetq": "int8", "experts_int8": "int8", "tpu_int8": "int8", "w8a8_int8": "int8", "deepspeedfp": "fp8", "bitnet": "w2g1024"}
_TORCHAO = (
    ("int4", "int4weightonly|int4_weight_only|int8dynamicactivationint4|int8_dynamic_activation_int4|uint4"),
    ("fp8", "float8"),
    ("int8", "int8"),
    ("mxfp4", "mxfp4"),
    ("nvfp4", "nvfp4"),
)


def integers(block: Keys) -> str | None:
    """AWQ, GPTQ and AutoRound: integers in groups."""
    bits = block.whole_or(None, "bits", "w_bit")
    group = block.whole_or(128, "group_size", "q_group_size", ge=-1)
    method = block.raw.get("quant_method")
    zero_point = block.flag(True, "zero_point") if str(method).startswith("awq") else not block.flag(True, "sym")
    if bits is None:
        if block.first("bits", "w_bit") is None:
            block.wrong("bits", "a value")
        return None
    return _integer(block, bits, group, zero_point, "bits")


def bitsandbytes(block: Keys) -> str | None:
    """bitsandbytes: 4 bits, with scales that may be quantised themselves, or 8 bits."""
    four, eight = block.flag(False, "load_in_4bit", "_load_in_4bit"), block.flag(False, "load_in_8bit", "_load_in_8bit")
    if four == eight:
        block.wrong("load_in_4bit", "true for one of load_in_4bit and load_in_8bit")
    if eight:
        return "int8"
    return "nf4_nested" if block.flag(False, "bnb_4bit_use_double_quant") else "nf4"


def mlx(block: Keys) -> str | None:
    """MLX: no method, only bits and the size of a group, or the name of a float type as mode."""
    mode = block.word("mode") or "affine"
    if mode in ("mxfp4", "nvfp4", "mxfp8"):
        return mode
    return _scale_and_zero(block, block.whole("bits"), block.whole_or(64, "group_size", ge=-1), "bits")


def quark(block: Keys) -> str | None:
    """AMD Quark: the type of weights of all layers."""
    part = block.part("global_quant_config")
    if part is None:
        block.wrong("global_quant_config", "a value")
        return None
    return quark_type(part)


def quark_type(part: Keys) -> str | None:
    """The type of weights in a block of Quark; of several steps, the last one is stored."""
    value = part.raw.get("weight")
    if isinstance(value, list) and value:
        value = value[-1]
    if value is None:
        return None
    if not isinstance(value, Mapping):
        part.wrong("weight", "a mapping")
        return None
    weight = Keys(value, part.where, part.problems, "weight.")
    name, group = weight.word("dtype") or "", weight.whole_or(None, "group_size", ge=-1)
    if name.startswith("fp8"):
        return "fp8"
    if name in ("fp4", "mxfp4", "mx"):
        return "nvfp4" if group == 16 else "mxfp4"
    if (found := re.fullmatch(r"(u?)int(\d)", name)) is not None:
        return _integer(weight, int(found[2]), group, bool(found[1]), "dtype")
    weight.wrong("dtype", "fp8_e4m3, fp4, int4, uint4 or int8")
    return None


def hqq(block: Keys) -> str | None:
    """HQQ: integers in groups with zero points, alike for all modules or listed for each kind of them."""
    part = block.part("quant_config")
    if part is not None and part.first("weight_quant_params") is None:
        part = next((inner for name in part.raw if (inner := part.part(name)) is not None), part)
    weights = part.part("weight_quant_params") if part is not None else None
    if weights is None:
        block.wrong("quant_config", "weight_quant_params with nbits and group_size")
        return None
    return _scale_and_zero(weights, weights.whole("nbits"), weights.whole_or(64, "group_size", ge=-1), "nbits")


def quanto(block: Keys) -> str | None:
    """Quanto: one word."""
    word = block.word("weights")
    found = {"int8": "int8", "float8": "fp8", "int4": "w4g128", "int2": "w2g128"}.get(word or "")
    if found is None:
        block.wrong("weights", "int8, float8, int4 or int2")
    return found


def torchao(block: Keys) -> str | None:
    """torchao: the name of a scheme, or a config by its class."""
    scheme, group = block.raw.get("quant_type"), 128
    data: object = block.raw.get("quant_type_kwargs")
    if isinstance(scheme, Mapping):
        inner = scheme.get("default")
        scheme, data = (inner.get("_type"), inner.get("_data")) if isinstance(inner, Mapping) else (None, None)
    if isinstance(data, Mapping) and isinstance(data.get("group_size"), int) and not isinstance(data["group_size"], bool):
        group = data["group_size"]
    text = scheme.lower() if isinstance(scheme, str) else ""
    dtype = next((dtype for dtype, pattern in _TORCHAO if re.search(pattern, text)), None)
    if dtype is None:
        block.wrong("quant_type", "a scheme of int4, int8, float8, mxfp4 or nvfp4 weights")
    if dtype != "int4":
        return dtype
    return _integer(block, 4, group, False, "quant_type") if "int8" in text else _scale_and_zero(block, 4, group, "quant_type")


def vector(block: Keys) -> str | None:
    """AQLM: codebooks for groups of weights."""
    bits = block.whole("nbits_per_codebook") * block.whole("num_codebooks") / (block.whole_or(8, "in_group_size") or 8)
    return _integer(block, round(bits), None, False, "nbits_per_codebook")


def higgs(block: Keys) -> str | None:
    """HIGGS: grids for groups of weights."""
    return _integer(block, block.whole("bits"), block.whole_or(256, "group_size"), False, "bits")


def fp_quant(block: Keys) -> str | None:
    """FP-Quant: the type of the forward pass."""
    return {"mxfp4": "mxfp4", "nvfp4": "nvfp4", "mxfp8": "mxfp8"}.get(block.word("forward_dtype") or "mxfp4")


READERS: Mapping[str, Callable[[Keys], str | None]] = {
    "bitsandbytes": bitsandbytes,
    "mlx": mlx,
    "quark": quark,
    "hqq": hqq,
    "quanto": quanto,
    "torchao": torchao,
    "aqlm": vector,
    "higgs": higgs,
    "fp_quant": fp_quant,
    **dict.fromkeys(INTEGERS, integers),
}


def unsaid(block: Keys) -> str | None:
    """The method of a block that does not name it, told from its keys; None if they do not tell."""
    if block.first("load_in_4bit", "load_in_8bit") is not None:
        return "bitsandbytes"
    return "mlx" if block.first("bits") is not None and block.first("group_size", "mode") is not None else None


def _scale_and_zero(block: Keys, bits: int, group: int | None, key: str) -> str | None:
    """Integers with a scale and a zero point in 16 bits for each group: as many bytes as scales of groups half as large."""
    return _integer(block, bits, group // 2 if group is not None and group > 1 else None, False, key)


def _integer(block: Keys, bits: int, group: int | None, zero_point: bool, key: str) -> str | None:
    dtype = integer_dtype(bits, None if group in (None, -1, 0) else group, zero_point=zero_point)
    if dtype is None and not any(key in problem.key for problem in block.problems):
        block.wrong(key, "2, 3, 4, 5, 6 or 8 bits, in groups of 16 to 1024")
    return dtype
