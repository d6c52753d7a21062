"""How a checkpoint stores its matrices: `quantization_config`, and `hf_quant_config.json` beside it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..layers.dtypes import integer_dtype
from ..layers.weights import Weight
from .keys import Keys
from .methods import BYTES, READERS, quark_type, unsaid

# Modules that hold each matrix, by the names that checkpoints give them.
MODULES: dict[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.qkv_proj", "mixer.q_proj", "attn.q_proj"),
    "o": ("self_attn.o_proj", "mixer.o_proj", "attn.wo_b", "self_attn.o_b_proj"),
    "q": ("self_attn.q_proj",),
    "q_down": ("self_attn.q_a_proj", "attn.wq_a"),
    "q_up": ("self_attn.q_b_proj", "attn.wq_b"),
    "kv_down": ("self_attn.kv_a_proj_with_mqa",),
    "kv_up": ("self_attn.kv_b_proj",),
    "kv": ("self_attn.kv_proj", "attn.wkv"),
    "o_down": ("self_attn.o_a_proj", "attn.wo_a"),
    "o_gate": ("self_attn.g_proj",),
    "compressor": ("self_attn.compressor.kv_proj", "attn.compressor.wkv"),
    "index_q": ("self_attn.indexer.wq_b", "attn.indexer.wq_b", "self_attn.index_q_proj", "self_attn.indexer.q_proj"),
    "index_k": ("self_attn.indexer.wk", "attn.indexer.compressor.wkv", "self_attn.index_k_proj", "self_attn.indexer.k_proj"),
    "index_weights": ("self_attn.indexer.weights_proj", "attn.indexer.weights_proj"),
    "in_qkvz": ("linear_attn.in_proj_qkv", "linear_attn.in_proj_qkvz"),
    "in_ba": ("linear_attn.in_proj_ba", "linear_attn.in_proj_a"),
    "out": ("linear_attn.out_proj", "mixer.out_proj", "mamba.out_proj", "self_attn.o_proj", "conv.out_proj"),
    "in": ("mixer.in_proj", "mamba.in_proj", "conv.in_proj"),
    "in_qkv": ("self_attn.q_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.gate_up_proj", "feed_forward.gate_proj", "mixer.up_proj", "block_sparse_moe.gate_proj"),
    "up": ("mlp.up_proj", "mixer.up_proj", "mlp.fc1"),
    "down": ("mlp.down_proj", "feed_forward.down_proj", "mixer.down_proj"),
    "router": ("mlp.gate", "block_sparse_moe.gate", "mixer.gate", "mlp.router"),
    "latent_down": ("mixer.fc1_latent_proj", "block_sparse_moe.routed_expert_down_proj"),
    "latent_up": ("mixer.fc2_latent_proj", "block_sparse_moe.routed_expert_up_proj"),
}
SHARED = (
    "mlp.shared_experts",
    "mlp.shared_expert",
    "mixer.shared_experts",
    "block_sparse_moe.shared_experts",
    "ffn.shared_experts",
)
EXPERTS = ("mlp.experts", "mixer.experts", "block_sparse_moe.experts", "ffn.experts", "feed_forward.experts", "moe.experts")
PREFIXES = re.compile(r"^(?:(?:model|language_model|backbone|transformer|text_model|llm)\.)+")
ALGORITHMS = {
    "FP8": "fp8",
    "FP8_PB_WO": "fp8",
    "FP8_BLOCK_SCALES": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "NVFP4": "nvfp4",
    "NVFP4_AWQ": "nvfp4",
    "W4A16_NVFP4": "nvfp4",
    "W4A8_NVFP4_FP8": "nvfp4",
    "MXFP4": "mxfp4",
    "W4A8_MXFP4_FP8": "mxfp4",
    "MXFP8": "mxfp8",
    "INT8_SQ": "int8",
    "W8A8_SQ_PER_CHANNEL": "int8",
    "W8A16": "int8",
    "INT4_AWQ": "int4",
    "W4A16_AWQ": "int4",
    "W4A8_AWQ": "int4",
    "W4A16": "int4",
}
KV_ALGORITHMS = {"FP8": "fp8", "INT8": "int8", "NVFP4": "nvfp4", "FP4": "nvfp4"}
KNOWN = ("fp8", "fbgemm_fp8", "mxfp4", "awq", "gptq", "auto-round", "bitsandbytes", "compressed-tensors", "modelopt")
METHODS = (*KNOWN, "quark", "hqq", "torchao", "quanto", "eetq", "aqlm", "bitnet", "mlx")
SKIPPED = (
    *("ignore", "exclude_modules", "modules_to_not_convert", "llm_int8_skip_modules", "ignored_layers"),
    *("exclude", "skip_modules"),  # Quark, HQQ
)


@dataclass(eq=False, repr=False)
class Patterns:
    """Names of modules, as configs write them: whole names, parents, parts of names, globs, regular expressions."""

    exact: set[str] = field(default_factory=set)
    globs: list[str] = field(default_factory=list)
    regexes: list[str] = field(default_factory=list)
    _compiled: re.Pattern[str] | None = None

    def add(self, pattern: str) -> None:
        """Add one name or pattern."""
        if pattern.startswith("re:"):
            self.regexes.append(f"(?:{pattern[3:]})")
        elif any(char in pattern for char in "*?["):
            self.globs.append(PREFIXES.sub("", pattern))
        else:
            self.exact.add(PREFIXES.sub("", pattern))

    def compile(self) -> None:
        """Join the globs.

        Raises:
            ValueError: A regular expression is none, or is too long to be trusted.
        """
        joined = [f"(?:{fnmatch.translate(glob)[:-2]}(?:\\..*)?\\Z)" for glob in self.globs]
        joined += [
            f"(?:{fnmatch.translate('*.' + glob)[:-2]}(?:\\..*)?\\Z)" for glob in self.globs if not glob.startswith("layers")
        ]
        if any(len(regex) > 500 for regex in self.regexes):
            raise ValueError("a regular expression of more than 500 characters")
        self._compiled = re.compile("|".join([*joined, *self.regexes])) if joined or self.regexes else None

    def match(self, name: str) -> bool:
        """True if a module of this name is meant."""
        parts = name.split(".")
        if any(".".join(parts[i:j]) in self.exact for j in range(1, len(parts) + 1) for i in range(j) if i == 0 or i >= 2):
            return True
        if self._compiled is None:
            return False
        return bool(self._compiled.match(name) or self._compiled.match(f"model.{name}"))


class StoredTypes(Protocol):
    """What weight files tell of the types of matrices."""

    def dtype(self, layer: int, weight: Weight) -> str | None: ...
    def of_head(self) -> str | None: ...


@dataclass(eq=False, repr=False)
class Storage:
    """How matrices are stored.

    Attributes:
        usual: Dtype of a linear layer; None for that of the activations.
        experts: The same of routed experts, where it differs; the empty text for as usual.
        kept: Modules that are not stored so.
        named: Dtype by module name.
        targets: Dtype of modules by pattern.
        kv_dtype: Dtype of the KV cache, if it is stated.
        embedding: Dtype of the embedding; None for that of the activations.
        expert_modules: Names of the module of all experts, within a layer.
        files: The weight files, which have the last word.
    """

    usual: str | None = None
    experts: str | None = ""
    kept: Patterns = field(default_factory=Patterns)
    named: dict[str, str] = field(default_factory=dict)
    kv_dtype: str | None = None
    targets: list[tuple[Patterns, str]] = field(default_factory=list)
    embedding: str | None = None
    expert_modules: tuple[str, ...] = EXPERTS
    files: StoredTypes | None = None

    @property
    def anything(self) -> bool:
        """True if something is quantised, or may be."""
        return self.files is not None or self.usual is not None or bool(self.experts or self.named or self.targets)

    def of(self, layer: int, weight: Weight) -> str | None:
        """Return the dtype of a matrix of a layer; None for that of the activations."""
        if self.files is not None and (held := self.files.dtype(layer, weight)) is not None:
            return held
        names = tuple(f"layers.{layer}.{name}" for name in (self.expert_modules if weight.role == "expert" else modules_of(weight)))
        for name in names:
            found = self._named(name)
            if found is not None:
                return found
        if weight.role == "router" or not names or any(self.kept.match(name) for name in names):
            return None
        for patterns, dtype in self.targets:
            if any(patterns.match(name) for name in (*names, *(_parts_of(names, weight) if weight.role == "expert" else ()))):
                return dtype
        if weight.role == "expert" and self.experts != "":
            return self.experts
        return self.usual

    def _named(self, name: str) -> str | None:
        while name:
            if name in self.named:
                return self.named[name]
            name = name.rpartition(".")[0]
            if name.count(".") < 2:
                break
        return None

    def head(self) -> str | None:
        """Return the dtype of the LM head; None for that of the activations."""
        held = self.files.of_head() if self.files is not None else None
        return held or self.named.get("lm_head") or self.named.get("head")


def modules_of(weight: Weight) -> tuple[str, ...]:
    """Names that checkpoints give the module of a matrix, within its layer."""
    if weight.role == "expert":
        return EXPERTS
    if weight.name.startswith("shared_") and weight.role == "linear":
        parts = ("up_proj", "gate_proj") if "up" in weight.name else ("down_proj",)
        return tuple(f"{module}.{part}" for module in SHARED for part in parts)
    return MODULES.get(weight.name, (f"self_attn.{weight.name}",))


def read_storage(keys: Keys, blocks: list[Keys]) -> Storage:
    """Read how a checkpoint is stored.

    Args:
        keys: The config.
        blocks: Its quantisation blocks; a file may have more than one, but they must agree.
    """
    found = [_read(block) for block in blocks]
    if not found:
        storage = Storage()
    else:
        storage = found[0]
        if any((other.usual, other.experts) != (storage.usual, storage.experts) for other in found[1:]):
            keys.wrong("quantization_config", "one quantisation, or blocks that agree", "blocks that contradict one another")
    if (keys.word("model_type") or "").startswith("gemma4"):
        storage.expert_modules = ("experts",)  # beside a dense `mlp`, which may be kept as it is
    dtype = keys.word("expert_dtype")
    if dtype is not None and storage.experts == "":
        known = {"fp4": "mxfp4", "mxfp4": "mxfp4", "fp8": "fp8", "bf16": None, "bfloat16": None, "nvfp4": "nvfp4"}
        if dtype not in known:
            keys.wrong("expert_dtype", " or ".join(known))
        storage.experts = known.get(dtype)
    try:
        for patterns in (storage.kept, *(patterns for patterns, _ in storage.targets)):
            patterns.compile()
    except (ValueError, re.error) as error:
        keys.wrong("quantization_config", "patterns of module names", str(error))
    return storage


def _read(block: Keys) -> Storage:
    storage = Storage()
    method, algorithm = block.word("quant_method"), block.word("quant_algo", "moe_quant_algo")
    if inner := block.part("quantization"):  # hf_quant_config.json
        return _read(inner)
    method = method or (unsaid(block) if algorithm is None else None)
    if method is None and algorithm is None and block.first("config_groups") is None:
        block.wrong("quant_method", f"one of {', '.join(METHODS)}")
        return storage
    for name in SKIPPED:
        if name == "ignore" and method in ("fp8", "finegrained_fp8") and block.first("config_groups"):
            continue  # what the groups leave is in fp8
        for pattern in block.words(name) or []:
            storage.kept.add(pattern)
    _kv_cache(block, storage)
    match method:
        case "fp8" | "fbgemm_fp8" | "finegrained_fp8":
            size = block.wholes("weight_block_size")
            if size is not None and (len(size) != 2 or not all(size)):
                block.wrong("weight_block_size", "two sizes of at least 1")
            storage.usual = "fp8"
        case "mxfp4":
            storage.usual, storage.experts = None, "mxfp4"
        case "experts_int8":
            storage.usual, storage.experts = None, "int8"
        case str() if method in READERS:
            storage.usual = READERS[method](block)
            _quark_layers(block, storage) if method == "quark" else None
            if method == "mlx":  # quantises embedding and head too
                storage.embedding = storage.named["lm_head"] = storage.usual or ""
        case str() if method in BYTES:
            storage.usual = BYTES[method]
        case "compressed-tensors" | "sparseml" | "modelopt" | "modelopt_fp4" | "modelopt_mixed" | None:
            if not block.first("config_groups") and algorithm is None:
                block.wrong("config_groups", "a value for this quant_method")
        case _:
            block.wrong("quant_method", f"one of {', '.join(METHODS)}; a GGUF file tells its types itself")
    _groups(block, storage, method)
    if algorithm is not None and algorithm not in ALGORITHMS and algorithm != "MIXED_PRECISION":
        block.wrong("quant_algo", f"MIXED_PRECISION or one of {', '.join(ALGORITHMS)}", algorithm)
    elif method not in ("fp8",) and algorithm in ALGORITHMS:
        storage.usual = ALGORITHMS[algorithm]
    _named_layers(block, storage)
    return storage


def _kv_cache(block: Keys, storage: Storage) -> None:
    if isinstance(block.raw.get("kv_cache_scheme"), str):  # older releases of modelopt write the name
        storage.kv_dtype = KV_ALGORITHMS.get((block.word("kv_cache_scheme") or "").upper())
    elif (scheme := block.part("kv_cache_scheme")) is not None:
        bits, kind = scheme.whole_or(16, "num_bits"), scheme.word("type")
        storage.kv_dtype = {(8, "float"): "fp8", (8, "int"): "int8", (4, "float"): "nvfp4", (4, "int"): "int4"}.get(
            (bits or 16, kind or "")
        )
    elif (name := block.word("kv_cache_quant_algo")) is not None:
        storage.kv_dtype = KV_ALGORITHMS.get(name.upper())


def _groups(block: Keys, storage: Storage, method: str | None) -> None:
    """Groups of modules that are stored alike: all linear layers, or those that are named."""
    groups = block.part("config_groups")
    if groups is None:
        return
    usual, by_pattern = set[str | None](), list[tuple[str, str]]()
    for name in groups.raw:
        group = groups.part(name)
        weights = group.part("weights") if group is not None else None
        if group is None or weights is None:
            continue
        dtype = _scheme(weights)
        targets = group.words("targets") or ["Linear"]
        if any(target == "Linear" for target in targets):
            usual.add(dtype)
        for target in targets:
            if target != "Linear" and dtype is not None and not target.startswith("re:"):
                storage.named.setdefault(_module(target), dtype)
            elif target.startswith("re:") and dtype is not None:
                by_pattern.append((target, dtype))
    if len(usual | {dtype for _, dtype in by_pattern}) > 1:
        storage.targets = [(_pattern(target), dtype) for target, dtype in by_pattern]
    else:
        usual |= {dtype for _, dtype in by_pattern}
    if method in ("fp8", "finegrained_fp8"):
        return
    if len(usual) > 1:
        block.wrong("config_groups", "one type for all linear layers", f"{len(usual)} types")
    storage.usual = usual.pop() if usual else storage.usual


def _scheme(weights: Keys) -> str | None:
    bits, kind = weights.whole("num_bits"), weights.word("type") or "int"
    group = weights.whole_or(None, "group_size", ge=-1)
    if kind == "float":
        dtype = {(8, 32): "mxfp8", (4, 16): "nvfp4", (4, 32): "mxfp4"}.get((bits, group or 0)) or {8: "fp8", 4: "nvfp4"}.get(bits)
    else:
        symmetric = weights.flag(True, "symmetric")
        dtype = integer_dtype(bits, None if group in (None, -1) else group, zero_point=not symmetric)
    if dtype is None:
        weights.wrong("num_bits", "4 or 8 bits of type float, or 2, 3, 4, 5, 6 or 8 bits of type int")
    return dtype


def _named_layers(block: Keys, storage: Storage) -> None:
    layers = block.raw.get("quantized_layers")
    if layers is None:
        return
    if not isinstance(layers, Mapping):
        block.wrong("quantized_layers", "a mapping")
        return
    for name, scheme in layers.items():
        algorithm = scheme.get("quant_algo") if isinstance(scheme, Mapping) else None
        dtype = ALGORITHMS.get(algorithm) if isinstance(algorithm, str) else None
        if dtype is None:
            block.wrong("quantized_layers", f"a quant_algo of {', '.join(ALGORITHMS)} for each module", algorithm)
            return
        storage.named[_module(str(name))] = dtype


def _quark_layers(block: Keys, storage: Storage) -> None:
    """Quark: layers that are stored otherwise, by pattern, and the cache."""
    for key in ("layer_quant_config", "kv_cache_quant_config"):
        layers = block.part(key)
        for name in layers.raw if layers is not None else ():
            part = layers.part(name) if layers is not None else None
            output = part.raw.get("output_tensors") if part is not None else None
            if (
                isinstance(output, Mapping)
                and str(output.get("dtype")).startswith("fp8")
                and name.endswith(("k_proj", "v_proj", "kv"))
            ):
                storage.kv_dtype = "fp8"
            if part is not None and key == "layer_quant_config" and (dtype := quark_type(part)) is not None:
                storage.targets.append((_pattern(name), dtype))


def _pattern(text: str) -> Patterns:
    patterns = Patterns()
    patterns.add(text)
    return patterns


def _parts_of(names: tuple[str, ...], weight: Weight) -> tuple[str, ...]:
    """Names of the matrices of one expert, which patterns may be written for."""
    parts = ("down_proj", "w2") if "down" in weight.name else ("gate_proj", "up_proj", "w1", "w3")
    return tuple(f"{name}.0.{part}" for name in names for part in parts)


def _module(name: str) -> str:
    """A module's name without its prefix, and all experts of a layer as one."""
    name = PREFIXES.sub("", name)
    head, found, _ = name.partition(".experts.")
    return f"{head}.experts" if found else name
