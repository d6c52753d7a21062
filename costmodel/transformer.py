"""What a model is: the facts of a decoder-only transformer that costs and execution follow from.

Read from a Hugging Face `config.json`, a directory that holds one, or a built-in name.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal, get_args

import pydantic

from costmodel.errors import InputError, Problem, bad, from_pydantic

BYTES_PER_ELEMENT = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}
Family = Literal["llama", "mistral", "qwen2", "qwen3"]
FAMILIES: tuple[Family, ...] = get_args(Family)


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context a model was first trained on.

    Attributes:
        kind: `linear`, `llama3` or `yarn`.
        factor: Stretch of the context.
        original_context_len: Context before stretching. [tokens]
        low_freq_factor, high_freq_factor: Llama 3 only: where the blend between kept and stretched frequencies lies.
        beta_fast, beta_slow: YaRN only: the same, in rotations over the original context.
        attention_factor: YaRN only: factor on cosine and sine; None for 0.1 ln(factor) + 1.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_context_len: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


@dataclass(frozen=True)
class TransformerConfig:
    """A dense, Llama-family, decoder-only transformer.

    Attributes:
        name: As shown to people.
        family: `llama`, `mistral`, `qwen2` or `qwen3`.
        num_layers: Decoder layers.
        d_model: Width of the residual stream.
        num_heads: Query heads.
        num_kv_heads: Key/value heads; fewer than `num_heads` under grouped-query attention.
        head_dim: Width of one head.
        d_ff: Width of the gated MLP.
        vocab_size: Rows of the embedding.
        max_context_len: Positions the model knows. [tokens]
        tied_embeddings: The LM head is the embedding.
        qkv_bias: The q, k and v projections have a bias.
        qk_norm: Each q and k head is RMS-normalised.
        sliding_window: Attention reaches back this far; None for all the way. [tokens]
        dtype: Type the weights are stored and computed in; the KV cache follows it.
        rope_theta: Base of the rotary frequencies.
        rope_scaling: How they are stretched, if at all.
        norm_eps: Epsilon of the RMS norms.
    """

    name: str
    family: Family
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    max_context_len: int
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    dtype: str = "bfloat16"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5

    @property
    def d_attention(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def d_kv(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_kv_heads * self.head_dim

    @property
    def attention_params(self) -> int:
        """Parameters of the q, k, v and o projections of one layer, with bias and q/k norms."""
        matrices = self.d_model * (2 * self.d_attention + 2 * self.d_kv)
        bias = (self.d_attention + 2 * self.d_kv) if self.qkv_bias else 0
        return matrices + bias + (2 * self.head_dim if self.qk_norm else 0)

    @property
    def mlp_params(self) -> int:
        """Parameters of the gate, up and down projections of one layer."""
        return 3 * self.d_model * self.d_ff

    @property
    def embedding_params(self) -> int:
        """Parameters of the token embedding; the LM head has as many, shared with it when tied."""
        return self.vocab_size * self.d_model

    @property
    def params(self) -> int:
        """All parameters, each stored once."""
        per_layer = self.attention_params + self.mlp_params + 2 * self.d_model
        heads = self.embedding_params * (1 if self.tied_embeddings else 2)
        return self.num_layers * per_layer + self.d_model + heads

    @property
    def bytes_per_element(self) -> float:
        """Size of one weight or cache element. [bytes]"""
        return BYTES_PER_ELEMENT[self.dtype]

    @property
    def weight_bytes(self) -> float:
        """Size of all weights in memory. [bytes]"""
        return self.params * self.bytes_per_element

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of one token over all layers. [bytes/token]

        Left out: paging and alignment waste of real allocators.
        """
        return 2 * self.num_layers * self.d_kv * self.bytes_per_element

    def with_dtype(self, dtype: str) -> TransformerConfig:
        """The same model stored and computed in another type."""
        return replace(self, dtype=dtype)


class _HfRope(pydantic.BaseModel):
    """`rope_scaling`, or `rope_parameters` as newer checkpoints call it."""

    model_config = pydantic.ConfigDict(extra="ignore", strict=True)

    rope_type: Literal["default", "linear", "llama3", "yarn"] = pydantic.Field(
        "default", validation_alias=pydantic.AliasChoices("rope_type", "type")
    )
    rope_theta: pydantic.PositiveFloat | None = None
    factor: float = pydantic.Field(1.0, ge=1.0)
    original_max_position_embeddings: pydantic.PositiveInt | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: None = None  # YaRN variants that are not executed here are refused, not silently taken for plain YaRN
    mscale_all_dim: None = None
    truncate: Literal[True] = True


class _HfConfig(pydantic.BaseModel):
    """The keys of a Hugging Face `config.json` that matter here; others are ignored, for there are many."""

    model_config = pydantic.ConfigDict(extra="ignore", strict=True)

    model_type: Family
    num_hidden_layers: pydantic.PositiveInt
    hidden_size: pydantic.PositiveInt
    num_attention_heads: pydantic.PositiveInt
    num_key_value_heads: pydantic.PositiveInt | None = None
    head_dim: pydantic.PositiveInt | None = None
    intermediate_size: pydantic.PositiveInt
    vocab_size: pydantic.PositiveInt
    max_position_embeddings: pydantic.PositiveInt
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: Literal["silu"] = "silu"
    sliding_window: pydantic.PositiveInt | None = None
    use_sliding_window: bool = False
    torch_dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None
    rope_theta: pydantic.PositiveFloat = 10000.0
    rope_scaling: _HfRope | None = None
    rope_parameters: _HfRope | None = None
    rms_norm_eps: pydantic.PositiveFloat = 1e-6
    quantization_config: None = None  # other weight formats are neither priced nor loaded

    @pydantic.model_validator(mode="after")
    def _keys_agree(self) -> _HfConfig:
        problems: list[Problem] = []

        def wrong(key: str, expected: str) -> None:
            problems.append(Problem("", key, expected, repr(getattr(self, key))))

        if self.num_attention_heads % (self.num_key_value_heads or self.num_attention_heads):
            wrong("num_attention_heads", f"a multiple of num_key_value_heads ({self.num_key_value_heads})")
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            wrong("hidden_size", f"a multiple of num_attention_heads ({self.num_attention_heads}) where head_dim is not given")
        if self.model_type in ("llama", "mistral", "qwen3") and (self.attention_bias or self.mlp_bias):
            wrong("attention_bias" if self.attention_bias else "mlp_bias", f"false for model_type {self.model_type!r}")
        if self.model_type.startswith("qwen") and self.use_sliding_window:
            wrong("use_sliding_window", "false for the Qwen families: windows on some layers only are not modelled")
        if problems:
            raise InputError(*problems)
        return self


def parse_hf_config(raw: object, *, where: str, name: str) -> TransformerConfig:
    """The configuration that a parsed Hugging Face `config.json` describes.

    Args:
        raw: The parsed JSON.
        where: The file, for error messages.
        name: How the model is called in what is printed.

    Raises:
        InputError: A key is missing, of the wrong type, or of a family that is not known here.
    """
    try:
        hf = _HfConfig.model_validate(raw)
    except pydantic.ValidationError as error:
        raise from_pydantic(error, where) from None
    rope = hf.rope_parameters or hf.rope_scaling or _HfRope.model_validate({})
    scaling = None
    if rope.rope_type != "default":
        scaling = RopeScaling(
            kind=rope.rope_type,
            factor=rope.factor,
            original_context_len=rope.original_max_position_embeddings or hf.max_position_embeddings,
            low_freq_factor=rope.low_freq_factor,
            high_freq_factor=rope.high_freq_factor,
            beta_fast=rope.beta_fast,
            beta_slow=rope.beta_slow,
            attention_factor=rope.attention_factor,
        )
    return TransformerConfig(
        name=name,
        family=hf.model_type,
        num_layers=hf.num_hidden_layers,
        d_model=hf.hidden_size,
        num_heads=hf.num_attention_heads,
        num_kv_heads=hf.num_key_value_heads or hf.num_attention_heads,
        head_dim=hf.head_dim or hf.hidden_size // hf.num_attention_heads,
        d_ff=hf.intermediate_size,
        vocab_size=hf.vocab_size,
        max_context_len=hf.max_position_embeddings,
        tied_embeddings=hf.tie_word_embeddings,
        qkv_bias=hf.model_type == "qwen2",
        qk_norm=hf.model_type == "qwen3",
        sliding_window=hf.sliding_window if hf.model_type == "mistral" else None,
        dtype=hf.dtype or hf.torch_dtype or "bfloat16",
        rope_theta=rope.rope_theta or hf.rope_theta,
        rope_scaling=scaling,
        norm_eps=hf.rms_norm_eps,
    )


def load_config(path: str | Path, *, name: str | None = None) -> TransformerConfig:
    """Read a `config.json`, or the one in a checkpoint directory.

    Raises:
        InputError: The file is missing, is not JSON, or does not describe a model known here.
    """
    path = Path(path)
    file = path / "config.json" if path.is_dir() else path
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise bad(file, "", "a readable config.json", error.strerror) from None
    except ValueError as error:
        raise bad(file, "", "JSON", error) from None
    return parse_hf_config(raw, where=str(file), name=name or (path.name if path.is_dir() else path.parent.name))


@cache
def builtin_configs() -> dict[str, Traversable]:
    """Files of the built-in models, by name."""
    folder = resources.files("costmodel") / "model_configs"
    files = {entry.name.removesuffix(".json"): entry for entry in folder.iterdir() if entry.name.endswith(".json")}
    return dict(sorted(files.items()))


def resolve_model(name: str, where: str = "--model") -> TransformerConfig:
    """The configuration a user means: a path, a built-in name in any spelling, or a Hugging Face repository id.

    Raises:
        InputError: Nothing of that name; the closest built-in names are listed.
    """
    if Path(name).exists() and (Path(name).is_dir() or name.endswith(".json")):
        return load_config(name, name=name)
    spelled = {_plain(known): known for known in builtin_configs()}
    known = spelled.get(_plain(name))
    if known is None:
        close = [spelled[match] for match in difflib.get_close_matches(_plain(name), spelled, n=4, cutoff=0.4)]
        hint = f"{', '.join(close)} are close; " if close else ""
        raise bad(where, "", f"a built-in name ({hint}`magicdec models` lists all) or a path to a config.json", repr(name))
    file = builtin_configs()[known]
    return parse_hf_config(json.loads(file.read_text(encoding="utf-8")), where=str(file), name=known)


def _plain(name: str) -> str:
    """A model's name without what people write differently: owner, case, separators, `-hf`, `-instruct`, Meta's prefix."""
    name = re.sub(r"[^a-z0-9.]+", "-", name.lower().rsplit("/", 1)[-1]).strip("-")
    name = re.sub(r"-(instruct|chat|hf|base|it)\b", "", name).removeprefix("meta-").removesuffix("-v1.0")
    return name.replace("-", "")
