"""Checkpoints of drafts that read hidden states of their target: EAGLE-3, block drafts (DFlash, DSpark), prediction modules.

Source: `speculators` (configs with `speculators_model_type`), the configs of SGLang and vLLM for `LlamaForCausalLMEagle3`, and
https://github.com/z-lab/dflash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..base.errors import bad
from ..base.files import read_text
from ..base.json_text import load_json_object
from ..base.units import format_bytes
from ..hf.keys import Keys
from ..layers.attention import Attention
from ..layers.layer import LayerGroup
from ..layers.weights import Weight
from ..tensors.safetensors import read_folder
from .architecture import StoredWeights
from .hf_config import parse_hf_config
from .transformer import TransformerConfig

HeadKind = Literal["eagle3", "mtp", "dflash", "dspark", "other"]
NO_MODEL = 2048  # one layer as wide as this is no model of its own
FUSED_LAYERS = 3  # hidden states of so many layers are joined, if no key says otherwise


@dataclass(frozen=True)
class DraftHead:
    """A draft that is no model of its own.

    Attributes:
        kind: What it is; `other` for kinds that are known by name only.
        title: Name of the kind, for people.
        config: Its layers and its head; embedding and hidden states come from the target.
        target_width: Width of the target's hidden states; None if the config does not say.
        target_vocab_size: Vocabulary of the target; None if the config does not say.
    """

    kind: HeadKind
    title: str
    config: TransformerConfig
    target_width: int | None
    target_vocab_size: int | None

    def check(self, target: TransformerConfig, where: str) -> None:
        """Check that it is a draft for this target, of a kind that can be priced.

        Raises:
            InputError: It is not.
        """
        wanted = {"hidden size": (target.d_model, self.target_width), "vocabulary": (target.vocab_size, self.target_vocab_size)}
        wrong = [name for name, (own, stated) in wanted.items() if stated is not None and own != stated]
        if wrong:
            expected = " and ".join(f"a {name} of {wanted[name][0]:,}" for name in wrong)
            found = " and ".join(f"{wanted[name][1]:,}" for name in wrong)
            raise bad(where, "", f"a draft for {target.name}, with {expected}", f"{self.config.name}, with {found}")
        if self.kind not in ("eagle3", "mtp"):
            size = f" ({format_bytes(self.config.weight_bytes)})" if self.kind != "other" else ""
            expected = "an EAGLE-3 draft, a prediction module or a smaller model"
            raise bad(
                where, "", expected, f"{self.config.name}, a draft of the kind {self.title}{size}, which cannot be priced yet"
            )


def head_kind(raw: Mapping[str, object]) -> tuple[HeadKind, str] | None:
    """What kind of draft a config is of, and its name; None for a model of its own."""
    named = raw.get("speculators_model_type")
    listed = raw.get("architectures")
    words = [word.lower() for word in listed if isinstance(word, str)] if isinstance(listed, list) else []
    words += [named.lower()] if isinstance(named, str) else []
    dflash = raw.get("dflash_config")
    if isinstance(dflash, Mapping) and dflash.get("projector_type") == "dspark":
        return "dspark", "DSpark (a block a pass)"
    if any("dspark" in word for word in words) or any(key.startswith("dspark_") for key in raw):
        return ("dspark", "DSpark (a block a pass)") if not _has_target_layers(raw, words) else None
    if any("dflash" in word for word in words) or dflash is not None:
        return "dflash", "DFlash (a block a pass)"
    if any("eagle3" in word for word in words) or (raw.get("draft_vocab_size") is not None and raw.get("num_hidden_layers") == 1):
        return "eagle3", "EAGLE-3"
    if any(word.endswith(("mtp", "mtpmodel", "nextn")) for word in words) or named == "mtp":
        return "mtp", "prediction module"
    if isinstance(named, str):
        return "other", named
    for key, other in (("medusa_num_heads", "medusa"), ("hydra_num_heads", "hydra")):
        if raw.get(key) is not None:
            return "other", other
    for word in words:
        for other in ("eagle", "medusa", "mlpspeculator", "hydra", "assistantmodel"):
            if other in word:
                return "other", other
    width = raw.get("hidden_size")
    if raw.get("num_hidden_layers") == 1 and isinstance(width, int) and width >= NO_MODEL:
        return "other", "EAGLE 1 or 2 (one layer that reads hidden states)"
    return None


def _has_target_layers(raw: Mapping[str, object], words: list[str]) -> bool:
    """A target may carry the keys of a draft that is stored with it."""
    layers = raw.get("num_hidden_layers")
    return not any("dspark" in word for word in words) and isinstance(layers, int) and layers > 16


def load_head(path: str | Path, *, name: str) -> DraftHead | None:
    """Read a draft's config and the headers of its weights; None if it is a model of its own, or no config.

    Args:
        path: A config.json, or a folder with one.
        name: What the user calls it.

    Raises:
        InputError: The config is one of a draft, but incomplete; or a weight file is damaged.
    """
    path = Path(path)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        return None
    raw = load_json_object(read_text(file, "config.json"), str(file), "config.json", finite=False)
    kind = head_kind(raw)
    if kind is None:
        return None
    head = _head(raw, kind, str(file), name)
    found = read_folder(path) if path.is_dir() else None
    if found is None:
        return head
    size = sum(tensor.nbytes for tensor in found[0])
    stored = StoredWeights((), size - head.config.weight_bytes)
    return replace(head, config=replace(head.config, stored=stored))


def _head(raw: Mapping[str, object], kind: tuple[HeadKind, str], where: str, name: str) -> DraftHead:
    inner = raw.get("transformer_layer_config")
    prefix = "" if inner is None else "transformer_layer_config."
    flat = dict(raw) if not isinstance(inner, Mapping) else {**raw, **inner}
    keys = Keys(flat, where, prefix=prefix)
    own = keys.whole("hidden_size") if kind[0] != "other" else keys.whole_or(None, "hidden_size", "emb_dim") or 1
    vocab = keys.whole_or(None, "vocab_size")
    width = keys.whole_or(own, "target_hidden_size")
    draft_vocab = keys.whole_or(vocab, "draft_vocab_size")
    keys.check()
    if kind[0] == "other":
        return DraftHead(*kind, _stub(flat, where, name), width if own > 1 else None, vocab)
    flat["model_type"] = _layer_type(flat, kind[0])
    flat.setdefault("num_hidden_layers", 1)
    flat.setdefault("max_position_embeddings", 2**17)
    # Block drafts use the head of their target, unless they predict only frequent tokens.
    flat["vocab_size"] = 1 if kind[0] in ("dflash", "dspark") and draft_vocab == vocab else draft_vocab
    if kind[0] == "mtp":
        return DraftHead(*kind, parse_hf_config(flat, where=where, name=name), width, vocab)
    for key in ("text_config", "quantization_config", "rope_scaling", "rope_parameters"):
        flat.pop(key, None)
    model = parse_hf_config(flat, where=where, name=name)
    layers = _fused_layers(flat)
    joined = model.d_model * layers * (width or own)
    model = replace(
        model, tied_embeddings=True, notes=(f"a draft of the kind {kind[1]}: embedding and hidden states are the target's",)
    )
    if kind[0] == "eagle3":
        model = _wider(model)
    # The projection of the joined hidden states runs once a round, on all GPUs: it counts in memory, not in a draft step.
    return DraftHead(*kind, replace(model, extra_vectors=model.extra_vectors + joined), width, vocab)


def _layer_type(flat: Mapping[str, object], kind: HeadKind) -> object:
    """Type of its layers: dense ones, whatever the target is."""
    if kind == "mtp":
        written = flat.get("model_type")
        base = re.sub(r"_?(?:mtp|nextn)$", "", str(written))
        return {"deepseek": "deepseek_v3"}.get(base, base) if base != str(written) else written
    stated = flat.get("model_type")
    return stated if stated in ("llama", "qwen2", "qwen3", "mistral") else "qwen3" if kind in ("dflash", "dspark") else "llama"


def _fused_layers(flat: Mapping[str, object]) -> int:
    parts: list[object] = [flat, flat.get("eagle_config"), flat.get("dflash_config")]
    for part in parts:
        for key in (
            "eagle_aux_hidden_state_layer_ids",
            "aux_hidden_state_layer_ids",
            "target_layer_ids",
            "dspark_target_layer_ids",
        ):
            listed = part.get(key) if isinstance(part, Mapping) else None
            if isinstance(listed, list) and 0 < len(listed) <= 64:
                return len(listed)
    return FUSED_LAYERS


def _wider(model: TransformerConfig) -> TransformerConfig:
    """EAGLE-3: the projections of attention read the embedding and the hidden state side by side."""
    groups = []
    for group in model.layers:
        kind = group.layer.attention
        assert isinstance(kind, Attention)
        width = (kind.heads + 2 * kind.kv_heads) * kind.head_dim
        extra = Weight("qkv_of_hidden_state", width, model.d_model)
        layer = replace(group.layer, extra=(*group.layer.extra, extra), norms=group.layer.norms + 1)
        groups.append(LayerGroup(layer, group.count, group.stored))
    return replace(model, groups=tuple(groups))


def _stub(flat: Mapping[str, object], where: str, name: str) -> TransformerConfig:
    """Something to name in a message about a kind that is known by name only."""
    sizes = Keys(flat, where)
    width = sizes.whole_or(1, "hidden_size") or 1
    return TransformerConfig(name, "draft", 1, width, 1, 1, 1, 1, 1, 1)
