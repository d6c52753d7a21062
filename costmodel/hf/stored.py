"""How weight files store each matrix: told from the tensors in their headers."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..layers.dtypes import BYTES_PER_ELEMENT
from ..layers.weights import Weight
from ..tensors.tensor import Tensor
from .quantisation import PREFIXES, modules_of

# Tensors of a GGUF file that hold each matrix, the one that tells its type first.
GGUF_TENSORS: dict[str, tuple[str, ...]] = {
    "qkv": ("attn_q", "attn_qkv"),
    "o": ("attn_output",),
    "q": ("attn_q",),
    "q_down": ("attn_q_a",),
    "q_up": ("attn_q_b",),
    "kv_down": ("attn_kv_a_mqa",),
    "kv_up": ("attn_kv_b", "attn_k_b"),
    "index_q": ("indexer.attn_q_b",),
    "index_k": ("indexer.attn_k",),
    "index_weights": ("indexer.proj",),
    "in_qkvz": ("attn_qkv", "ssm_in"),
    "in_ba": ("ssm_ba", "ssm_beta", "ssm_alpha"),
    "in_qkv": ("attn_q",),
    "in": ("ssm_in", "shortconv.in_proj"),
    "x": ("ssm_x",),
    "dt": ("ssm_dt",),
    "out": ("ssm_out", "shortconv.out_proj", "attn_output"),
    "gate_up": ("ffn_up",),
    "up": ("ffn_up",),
    "down": ("ffn_down",),
    "router": ("ffn_gate_inp",),
    "shared_router": ("ffn_gate_inp_shexp",),
    "shared_gate_up": ("ffn_up_shexp",),
    "shared_up": ("ffn_up_shexp",),
    "shared_down": ("ffn_down_shexp",),
    "expert_gate_up": ("ffn_up_exps", "ffn_gate_up_exps"),
    "expert_up": ("ffn_up_exps",),
    "expert_down": ("ffn_down_exps",),
    "latent_down": ("ffn_latent_down",),
    "latent_up": ("ffn_latent_up",),
    "per_layer_gate": ("inp_gate",),
    "per_layer_out": ("proj",),
    "laurel_down": ("laurel_l",),
    "laurel_up": ("laurel_r",),
    "altup_router": ("altup_router",),
}
_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
_PREDICTION = re.compile(r"(?:^|\.)(?:mtp|nextn|eh_proj|mtp_\w+)(?:\.|$)")
_ENCODERS = re.compile(r"(?:^|\.)(?:visual|vision\w*|audio\w*|embed_vision|embed_audio|multi_modal_projector|mm_projector)\.")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_PLAIN = ("float64", "float32", "bfloat16", "float16")
# Head and embedding, by the names that checkpoints give them.
HEADS = ("output.weight", "lm_head.weight", "head.weight")
EMBEDDINGS = (
    "token_embd.weight",
    "embed_tokens.weight",
    "embed.weight",
    "wte.weight",
    "embeddings.weight",
    "word_embeddings.weight",
)


@dataclass(frozen=True)
class TensorList:
    """The tensors of a checkpoint, as its files list them.

    Attributes:
        tensors: All tensors.
        where: File to name in messages.
        prediction: Names of those that are known to belong to prediction modules.
        ggml: They have the names and types of GGUF files.
    """

    tensors: Sequence[Tensor]
    where: str
    prediction: Collection[str] = ()
    ggml: bool = False


class WeightFiles:
    """The tensors of a checkpoint, by what they are.

    Attributes:
        where: File to name in messages.
        ggml: They have the names and types of GGUF files.
        total_bytes: Size of all tensors, without prediction modules. [bytes]
        bytes_by_type: The same by storage type.
        prediction_bytes: Size of the tensors of prediction modules. [bytes]
        encoder_elements: Elements of the tensors of encoders.
        elements: Elements of all other tensors: parameters, where no type is packed.
        packed: Whether some types hold several parameters in an element.
    """

    def __init__(self, listed: TensorList, num_layers: int):
        self.where, self.total_bytes, self.prediction_bytes = listed.where, 0, 0
        self.bytes_by_type: dict[str, int] = {}
        self.encoder_elements, self.elements, self.packed = 0, 0, False
        self.ggml = listed.ggml
        self._by_name: dict[str, Tensor] = {}
        self._modules: dict[str, list[tuple[str, Tensor]]] = {}
        for tensor in listed.tensors:
            encodes = _ENCODERS.search(f"{tensor.name}.") is not None
            name = PREFIXES.sub("", _ONE_EXPERT.sub(".experts.", tensor.name))
            layer = None if encodes else _LAYER.search(name)
            if tensor.name in listed.prediction or _PREDICTION.search(name) or (layer and int(layer[1]) >= num_layers):
                self.prediction_bytes += tensor.nbytes
                continue
            self.total_bytes += tensor.nbytes
            self.bytes_by_type[tensor.dtype] = self.bytes_by_type.get(tensor.dtype, 0) + tensor.nbytes
            if encodes:
                self.encoder_elements += tensor.elements
                continue
            self.elements += tensor.elements
            self.packed = self.packed or (tensor.dtype not in BYTES_PER_ELEMENT and tensor.elements > 1024)
            if name not in self._by_name:
                self._by_name[name] = tensor
                if layer:
                    self._register(name[layer.start() :].lstrip("."), tensor)

    def _register(self, name: str, tensor: Tensor) -> None:
        parts = name.split(".")
        for end in range(3, len(parts)):
            self._modules.setdefault(".".join(parts[:end]), []).append((".".join(parts[end:]), tensor))

    def dtype(self, layer: int, weight: Weight) -> str | None:
        """Storage type of a matrix of a layer; None if the tensors do not tell."""
        if self.ggml:
            for name in GGUF_TENSORS.get(weight.name, ()):
                if (tensor := self._by_name.get(f"blk.{layer}.{name}.weight")) is not None:
                    return tensor.dtype
            return None
        for name in modules_of(weight):
            if (held := self._modules.get(f"layers.{layer}.{name}")) is not None:
                return _type_of(held, weight)
        return None

    def of_head(self) -> str | None:
        """Storage type of the LM head; None if there is none of its own."""
        return self._named(HEADS)

    def of_embedding(self) -> str | None:
        """Storage type of the embedding; None if the tensors do not tell."""
        return self._named(EMBEDDINGS)

    def _named(self, names: Collection[str]) -> str | None:
        for name in names:
            if (tensor := self._by_name.get(name)) is not None and tensor.dtype in BYTES_PER_ELEMENT:
                return tensor.dtype
        return None


def _type_of(held: list[tuple[str, Tensor]], weight: Weight) -> str | None:
    """Type of a matrix, from the tensors of its module: the matrix itself is the largest, scales lie beside it."""
    suffix, main = max(held, key=lambda one: one[1].nbytes)
    if main.dtype in _PLAIN or main.dtype == "fp8":
        return main.dtype
    if any("bitsandbytes" in name for name, _ in held):
        return "nf4_nested" if any("nested" in name for name, _ in held) else "nf4"
    scales = {tensor.dtype for name, tensor in held if "scale" in name and tensor.elements > 1}
    halved = bool(main.shape) and 2 * main.shape[-1] == weight.inputs
    if main.dtype in ("u8", "int8", "f4") and (halved or main.dtype == "f4" or suffix.endswith("_blocks")):
        return "nvfp4" if "fp8" in scales else "mxfp4" if scales & {"u8", "f8_e8m0"} else None
    return "int8" if main.dtype == "int8" else None
