"""Conversion of a Hugging Face `config.json` to a TransformerConfig."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import InputError, Problem, bad
from ..base.files import read_text
from ..base.json_text import load_json_object
from ..hf.decoder import Architecture, Sizes, decoder, dense_width, sizes_of
from ..hf.families import EXECUTABLE_FAMILIES, FAMILIES, Family, family_name
from ..hf.keys import Keys, one_of
from ..hf.nested import text_part
from ..hf.patterns import modules_of_prediction
from ..hf.rope import rope_of
from ..layers.attention import Attention, AttentionKind, Latent
from ..layers.dtypes import BYTES_PER_ELEMENT
from ..layers.layer import Layer, LayerGroup, grouped
from ..layers.mlp import DenseMlp, ExpertMlp
from ..layers.weights import Weight
from .architecture import Experts, LatentAttention
from .plain import plain_layers
from .transformer import TransformerConfig

if TYPE_CHECKING:
    from ..hf.quantisation import Storage
    from ..hf.stored import TensorList

__all__ = ["EXECUTABLE_FAMILIES", "UnknownFamilyError", "load_config", "parse_hf_config", "shipped_config", "why_not_executable"]

DTYPES = ("float64", "float32", "bfloat16", "float16")
ENCODERS = ("vision_config", "audio_config", "vision_encoder_config")
OTHER_PARTS = ("vit_config", "vision_lora", "embd_layer", "audio_processor", "img_processor", "talker_config", "speech_lora")
QUANT_FILE = "hf_quant_config.json"


def parse_hf_config(
    raw: object,
    *,
    where: str,
    name: str,
    quantisation: Mapping[str, object] | None = None,
    tensors: TensorList | None = None,
) -> TransformerConfig:
    """Validate and convert a parsed Hugging Face `config.json`.

    Args:
        raw: The parsed JSON.
        where: The file, for error messages.
        name: Display name of the model.
        quantisation: Content of `hf_quant_config.json`, if the checkpoint has one.
        tensors: Those of its weight files, for exact sizes and types.

    Raises:
        InputError: A key is missing or has the wrong type, the model family is not supported, or the tensors are of another model.
    """
    if not isinstance(raw, Mapping):
        raise bad(where, "", "a mapping", f"{raw!r} ({type(raw).__name__})")
    whole = Keys(raw, where)
    text, blocks, defaults = text_part(whole)
    if quantisation is not None and not blocks:
        blocks = [Keys(quantisation, str(Path(where).with_name(QUANT_FILE)), whole.problems)]
    model_type = text.word("model_type")
    known = family_name(model_type) if model_type else None
    if model_type is None or known is None:
        whole.problems = []
        raise UnknownFamilyError(where, raw if text is whole else text.raw, text.raw.get("model_type"))
    family = FAMILIES[known]
    sizes = sizes_of(text, family)
    vocab_size = text.whole("padded_vocab_size" if "padded_vocab_size" in text.raw else "vocab_size")
    context = _context(text)
    if family.builder == "decoder" and not family.experts:
        dense_width(text, family, sizes)
    whole.check()
    found = _architecture(text, family, sizes)
    whole.check()
    storage = None
    if blocks or text.first("expert_dtype"):
        from ..hf.quantisation import read_storage

        storage = read_storage(text, blocks)
    encoders, unknown, outer = 0, False, whole.part("thinker_config") or whole
    if outer.first(*ENCODERS):
        from ..hf.encoders import encoder_params

        encoders, unknown = encoder_params(outer, sizes.d_model)
    unknown = unknown or whole.first(*OTHER_PARTS) is not None
    files = None
    if tensors is not None:
        from ..hf.quantisation import Storage
        from ..hf.stored import WeightFiles

        files = WeightFiles(tensors, sizes.layers)
        storage = storage or Storage()
        storage.files = files
        encoders, unknown = files.encoder_elements, False
    dtype = one_of(text, "dtype", DTYPES, "") or one_of(text, "torch_dtype", DTYPES, "") or one_of(whole, "dtype", DTYPES, "")
    dtype = dtype or one_of(whole, "torch_dtype", DTYPES, "bfloat16")
    base = TransformerConfig(
        name=name,
        family=known,
        num_layers=sizes.layers,
        d_model=sizes.d_model,
        num_heads=sizes.heads,
        num_kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        d_ff=max(dense_width(Keys(text.raw, where), family, sizes)[0], 1),
        vocab_size=vocab_size,
        max_context_len=context,
        tied_embeddings=_tied(whole, text, family),
        dtype=dtype,
        kv_dtype=storage.kv_dtype if storage else None,
        rope_theta=text.number(text.number(10_000.0, "rope_theta"), "rope_theta"),
        norm_eps=text.number(1e-6, "rms_norm_eps", "layer_norm_eps", "layernorm_epsilon", "layer_norm_epsilon", "norm_eps"),
        extra=found.extra,
        extra_vectors=found.extra_vectors,
        lookup_params=found.lookup_params,
        vision_params=encoders,
        state_dtype=_state_dtype(text),
    )
    if "rms_norm_eps" in text.raw and text.raw["rms_norm_eps"] is None:
        text.wrong("rms_norm_eps", "a valid number")
    theta, scaling = rope_of(text, context, executable=family.executable)
    whole.check()
    told = ", ".join(f"{key} {value:,}" for key, value in defaults.items())
    said = [f"sizes that the config leaves to the defaults of its family: {told}"] if defaults else []
    notes = (*found.notes, *said, *_notes(name, storage, unknown, found.layers))
    model = replace(base, rope_theta=theta or base.rope_theta, rope_scaling=scaling, notes=tuple(notes))
    if files is not None and (embedding := files.of_embedding()) not in (None, model.dtype):
        model = replace(model, embedding_dtype=embedding)
    if storage is not None and storage.embedding:
        model = replace(model, embedding_dtype=storage.embedding)
    mtp, num_mtp = list[Layer](), 0
    if modules_of_prediction(text):
        from ..hf.prediction import prediction_layers

        mtp, num_mtp = prediction_layers(text, family, sizes, found)
    whole.check()
    model = _with_layers(model, found, storage, mtp, num_mtp)
    if files is None:
        return model
    from .weight_files import attached

    return attached(model, files)


def why_not_executable(config: TransformerConfig) -> str | None:
    """Why the executor cannot run a model; None if it can."""
    if config.family not in EXECUTABLE_FAMILIES:
        return f"{config.family}, which can only be planned"
    if config.groups or config.o_bias or config.num_window_layers is not None:
        return f"a variant of {config.family} that can only be planned"
    stored = [dtype for dtype in (config.linear_dtype, config.kv_dtype) if dtype and BYTES_PER_ELEMENT[dtype] < 2]
    if stored:
        return f"a checkpoint in {stored[0]}, which can only be planned"
    return None


def shipped_config(raw: Mapping[str, object], *, name: str) -> TransformerConfig:
    """Convert the `config.json` of a built-in model.

    Args:
        raw: The parsed JSON.
        name: Display name of the model.
    """
    return parse_hf_config(raw, where=f"{name}.json", name=name)


def _architecture(text: Keys, family: Family, sizes: Sizes) -> Architecture:
    """The layers of any family; what only some of them need is loaded when they do."""
    if family.builder == "decoder":
        return decoder(text, family, sizes)
    from ..hf.hybrids import build

    return build(text, family, sizes)


class UnknownFamilyError(InputError):
    """A `model_type` that no reader knows; the parsed config is in `raw`, its file in `file`."""

    def __init__(self, where: str, raw: Mapping[str, object], model_type: object):
        import difflib

        close = difflib.get_close_matches(str(model_type), FAMILIES, n=3, cutoff=0.6)
        nearest = f", such as {' or '.join(close)}" if close else ""
        expected = (
            f"one of the {len(FAMILIES)} families that are read{nearest}; or one that transformers knows, where it is installed"
        )
        found = "nothing" if model_type is None else f"{model_type!r} ({type(model_type).__name__})"
        super().__init__(Problem(where, "model_type", expected, found))
        self.raw, self.file = raw, where


def _context(text: Keys) -> int:
    names = (
        "max_position_embeddings",
        "n_positions",
        "max_sequence_len",
        "model_max_length",
        "max_sequence_length",
        "seq_length",
        "max_seq_len",
    )
    if text.first(*names) is None and text.first("state_size") is not None:
        return 2**20  # a state space model has no limit of its own
    return text.whole(*names)


def _tied(whole: Keys, text: Keys, family: Family) -> bool:
    source = whole if whole.first("tie_word_embeddings") is not None else text
    return source.flag(family.tied, "tie_word_embeddings", "tie_embedding")


def _state_dtype(text: Keys) -> str | None:
    dtype = text.word("mamba_ssm_dtype", "mamba_ssm_cache_dtype")
    return dtype if dtype in DTYPES else None


def _notes(name: str, storage: Storage | None, unknown: bool, layers: list[Layer]) -> list[str]:
    found = []
    upper = name.upper()
    hint = next((word for word in ("NVFP4", "MXFP4", "FP8", "INT4", "INT8", "AWQ", "GPTQ", "4BIT", "8BIT") if word in upper), None)
    if hint and not (storage and storage.anything):
        found.append(
            f"the name says {hint}, the config says nothing of it: weights count as stored in 16 bits ({QUANT_FILE} is read too)"
        )
    if unknown:
        found.append("encoders or other parts whose sizes are not known are left out of the memory")
    if any(layer.recurrent for layer in layers):
        found.append(
            "recurrent layers: verification keeps one state per draft token and writes each, so that rejected tokens can be taken "
            "back; an engine that computes them again instead saves that memory and pays another pass over the accepted tokens"
        )
    return found


def _with_layers(
    model: TransformerConfig, found: Architecture, storage: Storage | None, mtp: list[Layer], num_mtp: int
) -> TransformerConfig:
    """Attach the layers: as the few numbers of a plain decoder if they say the same, else as groups."""
    stored = [_stored(model.d_model, model.dtype, i, layer, storage) for i, layer in enumerate(found.layers)]
    usual = Counter[str | None]()
    experts = Counter[str | None]()
    for layer in stored:
        for weight, dtype in layer:
            (experts if weight.role == "expert" else usual)[dtype] += 1 if weight.role != "router" else 0
    linear = usual.most_common(1)[0][0] if usual.total() else None
    expert = experts.most_common(1)[0][0] if experts.total() else linear
    head = storage.head() if storage and not model.tied_embeddings else None
    model = replace(
        model,
        linear_dtype=linear,
        expert_dtype=expert,
        head_dtype=head,
    )
    defaults = {"linear": linear, "expert": expert, "router": None}
    differing = [
        {weight.name: dtype or model.dtype for weight, dtype in layer if dtype != defaults[weight.role]} for layer in stored
    ]
    groups = grouped(zip(found.layers, differing, strict=True))
    plain = _plain_form(model, found.layers)
    if plain is not None and _same_layers(plain, groups):
        return replace(plain, num_mtp=num_mtp)
    own = tuple(LayerGroup(layer, 1, tuple(sorted(_prediction_types(model, layer, storage).items()))) for layer in mtp)
    return replace(plain or _usual(model, found.layers), groups=groups, mtp=own, num_mtp=num_mtp)


def _stored(d_model: int, own: str, index: int, layer: Layer, storage: Storage | None) -> list[tuple[Weight, str | None]]:
    weights = (*layer.mixers(d_model), *layer.mlps(d_model))
    if storage is None:
        return [(weight, None) for weight in weights]
    found = [(weight, storage.of(index, weight)) for weight in weights]
    return [(weight, dtype if dtype != own else None) for weight, dtype in found]


def _prediction_types(model: TransformerConfig, layer: Layer, storage: Storage | None) -> dict[str, str]:
    """Prediction modules are usually kept in 16 bits beside 4-bit layers, and quantised with those in 8 bits."""
    if storage is None or (storage.usual == "fp8" and not storage.named):
        return {}
    return {weight.name: model.dtype for weight in (*layer.mixers(model.d_model), *layer.mlps(model.d_model))}


def _same_layers(plain: TransformerConfig, groups: tuple[LayerGroup, ...]) -> bool:
    ours = {(group.layer, group.stored): group.count for group in plain_layers(plain)}
    return ours == {(group.layer, group.stored): group.count for group in groups}


def _plain_form(model: TransformerConfig, layers: list[Layer]) -> TransformerConfig | None:
    """The model described by the few numbers of its layers, if they are of plain kinds."""
    attentions, mlps = [layer.attention for layer in layers], [layer.mlp for layer in layers]
    expert = next((mlp for mlp in mlps if isinstance(mlp, ExpertMlp)), None)
    dense = next((mlp for mlp in mlps if isinstance(mlp, DenseMlp)), None)
    usual = next((kind for kind in attentions if kind is not None and kind.limit is None), attentions[0] if attentions else None)
    if not isinstance(usual, Attention | Latent) or None in mlps:
        return None
    experts = None
    if expert is not None:
        experts = Experts(
            expert.num_experts,
            int(expert.experts_per_token),
            expert.d_ff,
            expert.d_ff_shared,
            sum(isinstance(mlp, DenseMlp) for mlp in mlps),
            expert.bias,
        )
    windows = [kind.window for kind in attentions if isinstance(kind, Attention) and kind.window is not None]
    model = replace(model, experts=experts, d_ff=dense.d_ff if dense else model.d_ff, norms_per_layer=layers[0].norms)
    if isinstance(usual, Latent):
        latent = LatentAttention(usual.kv_rank, usual.rope_dim, usual.nope_dim, usual.value_dim, usual.q_rank)
        return replace(model, num_heads=usual.heads, latent=latent, head_dim=usual.nope_dim + usual.rope_dim)
    return replace(
        model,
        num_heads=usual.heads,
        num_kv_heads=usual.kv_heads,
        head_dim=usual.head_dim,
        qkv_bias=usual.qkv_bias,
        o_bias=usual.o_bias,
        qk_norm=usual.qk_norm == "head",
        attention_sinks=usual.sinks,
        sliding_window=windows[0] if windows else None,
        num_window_layers=len(windows)
        if 0 < len(windows) < len(layers) or (windows and model.family in ("gpt_oss", "gemma3"))
        else None,
    )


def _usual(model: TransformerConfig, layers: list[Layer]) -> TransformerConfig:
    """The numbers of the usual layer: heads that every kind of attention has, for splitting and for prediction heads."""
    kinds: list[AttentionKind] = [layer.attention for layer in layers if layer.attention is not None]
    if not kinds:
        heads = math.gcd(*(layer.recurrent.heads for layer in layers if layer.recurrent))
        return replace(model, num_heads=heads or 1, num_kv_heads=heads or 1, head_dim=1)
    heads = math.gcd(*(kind.heads for kind in kinds))
    kv_heads = math.gcd(*(kind.kv_heads if isinstance(kind, Attention) else 1 for kind in kinds))
    usual = next((kind for kind in kinds if isinstance(kind, Attention)), None)
    dense = next((layer.mlp.d_ff for layer in layers if isinstance(layer.mlp, DenseMlp)), model.d_ff)
    return replace(
        model,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=usual.head_dim if usual else model.head_dim,
        d_ff=dense,
    )


def load_config(path: str | Path, *, name: str | None = None, weights: bool = False) -> TransformerConfig:
    """Read a `config.json`, or the one in a checkpoint directory, with the `hf_quant_config.json` beside it.

    Args:
        path: The file or the directory.
        name: Display name of the model; the directory name by default.
        weights: Read the headers of the weight files in the directory too, for exact sizes.

    Raises:
        InputError: A file cannot be read or is not JSON, the model is not supported, or its weight files are damaged.
    """
    path = Path(path)
    file = path / "config.json" if path.is_dir() else path
    raw = load_json_object(read_text(file, "config.json"), str(file), "config.json", finite=False)
    beside = file.with_name(QUANT_FILE)
    quantisation = None
    if file.name == "config.json" and beside.is_file():
        quantisation = load_json_object(read_text(beside, QUANT_FILE), str(beside), QUANT_FILE, finite=False)
    shown = name or (path.name if path.is_dir() else path.parent.name)
    if not (weights and path.is_dir()):
        return parse_hf_config(raw, where=str(file), name=shown, quantisation=quantisation)
    from .weight_files import folder_tensors, with_index_total

    tensors = folder_tensors(path)
    model = parse_hf_config(raw, where=str(file), name=shown, quantisation=quantisation, tensors=tensors)
    return with_index_total(model, path) if tensors is None else model
