"""The keys of a GGUF file, under the names that Hugging Face configs have for them.

What differs between layers (attention or state, dense or experts, biases, norms) is told from the tensors that each has.
Source of the keys: `gguf.constants` and the conversion scripts of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..base.errors import InputError, Problem, bad
from ..tensors.gguf import GgufFile, Value
from .families import FAMILIES, Family, family_name

# Architectures that Hugging Face calls otherwise.
ARCHITECTURES = {
    "bailingmoe": "bailing_moe", "bailingmoe2": "bailing_moe_v2", "chatglm": "glm", "command-r": "cohere", "deci": "nemotron-nas",
    "deepseek": "deepseek_v2", "deepseek2": "deepseek_v3", "ernie4_5-moe": "ernie4_5_moe", "exaone-moe": "exaone_moe",
    "falcon-h1": "falcon_h1", "glm-dsa": "glm_moe_dsa", "glm4moe": "glm4_moe", "gpt-oss": "gpt_oss", "gptneox": "gpt_neox",
    "granitehybrid": "granitemoehybrid", "hunyuan-dense": "hunyuan_v1_dense", "hunyuan-moe": "hunyuan_v1_moe",
    "kimi-linear": "kimi_linear", "lfm2moe": "lfm2_moe", "mimo2": "mimo_v2_flash", "minimax-m2": "minimax_m2",
    "mistral3": "ministral3", "nemotron_h_moe": "nemotron_h", "phi2": "phi", "qwen2moe": "qwen2_moe", "qwen2vl": "qwen2",
    "qwen35": "qwen3_5", "qwen35moe": "qwen3_5_moe", "qwen3moe": "qwen3_moe", "qwen3next": "qwen3_next", "qwen3vl": "qwen3",
    "qwen3vlmoe": "qwen3_moe", "step35": "step3p5",
}  # fmt: skip
# Hugging Face's key for each key of a GGUF file, after the architecture's name.
KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.indexer.head_count": "index_n_heads",
    "attention.indexer.key_length": "index_head_dim",
    "attention.indexer.top_k": "index_topk",
    "attention.shared_kv_layers": "num_kv_shared_layers",
    "rope.freq_base": "rope_theta",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_shared_count": "n_shared_experts",
    "embedding_length_per_layer_input": "hidden_size_per_layer_input",
    "altup.num_inputs": "altup_num_inputs",
    "shortconv.l_cache": "conv_L_cache",
    "moe_latent_size": "moe_latent_size",
}
LAYER = re.compile(r"blk\.(\d+)\.(.+)")
STATES = ("ssm_a", "ssm_in.weight", "ssm_conv1d.weight", "shortconv.in_proj.weight")


@dataclass
class Converted:
    """A config made of a GGUF file.

    Attributes:
        raw: It, as a `config.json` would say it.
        origin: Key of the file for each of its keys, for messages.
        layers: Names of the tensors of each layer; prediction modules are left out.
        prediction: Names of the tensors of prediction modules.
    """

    raw: dict[str, object]
    origin: dict[str, str]
    layers: list[dict[str, tuple[int, ...]]]
    prediction: set[str] = field(default_factory=set)

    def explained(self, error: InputError) -> InputError:
        """The error, with the keys that the file has."""
        return InputError(
            *(Problem(one.where, self.origin.get(one.key, one.key), one.expected, one.found) for one in error.problems)
        )


def converted(file: GgufFile) -> Converted:
    """Convert the header of a GGUF file.

    Raises:
        InputError: It is no language model, its architecture is not known, or keys and tensors contradict each other.
    """
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise bad(file.where, "general.architecture", "the name of an architecture", architecture)
    model_type = ARCHITECTURES.get(architecture, architecture)
    known = family_name(model_type)
    if known is None or file.metadata.get("general.type", "model") != "model":
        expected = f"a language model: one of {', '.join(sorted({*ARCHITECTURES, *FAMILIES})[:60])} and others"
        raise bad(file.where, "general.architecture", expected, architecture)
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    if "token_embd.weight" not in shapes:
        raise bad(file.where, "tensors", "token_embd.weight", "no such tensor")
    found = _Conversion(file, architecture, shapes)
    if known == "llama" and found.number("expert_count"):
        model_type, known = "mixtral", "mixtral"
    return found.convert(model_type, FAMILIES[known])


class _Conversion:
    def __init__(self, file: GgufFile, architecture: str, shapes: Mapping[str, tuple[int, ...]]):
        self.file, self.architecture, self.shapes = file, architecture, shapes
        self.raw: dict[str, object] = {}
        self.origin: dict[str, str] = {}

    def value(self, key: str) -> Value:
        return self.file.metadata.get(f"{self.architecture}.{key}")

    def number(self, key: str) -> int:
        value = self.value(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    def put(self, name: str, key: str, value: object) -> None:
        if value is not None:
            self.raw[name], self.origin[name] = value, f"{self.architecture}.{key}"

    def wrong(self, key: str, expected: str, found: object) -> InputError:
        return bad(self.file.where, f"{self.architecture}.{key}", expected, found)

    def layers(self) -> tuple[list[dict[str, tuple[int, ...]]], set[str]]:
        """Tensors of each layer, and names of those of prediction modules, which are the last blocks."""
        blocks: dict[int, dict[str, tuple[int, ...]]] = {}
        for name, shape in self.shapes.items():
            if (found := LAYER.fullmatch(name)) is not None and len(found[1]) <= 5:
                blocks.setdefault(int(found[1]), {})[found[2]] = shape
        stated = self.value("block_count")
        own = [i for i, block in sorted(blocks.items()) if not any(name.startswith("nextn.") for name in block)]
        predicting = len(blocks) - len(own)
        if own != list(range(len(own))) or not isinstance(stated, int) or stated not in (len(own), len(own) + predicting):
            raise self.wrong("block_count", f"{len(own)}, the blocks that have tensors", stated)
        more = {f"blk.{i}.{name}" for i, block in blocks.items() if i not in set(own) for name in block}
        return [blocks[i] for i in own], more

    def convert(self, model_type: str, family: Family) -> Converted:
        layers, prediction = self.layers()
        for key, name in KEYS.items():
            self.put(name, key, self.value(key))
        embedding = self.shapes["token_embd.weight"]
        if len(embedding) != 2 or embedding[0] != self.value("embedding_length"):
            raise self.wrong("embedding_length", f"{embedding[0]}, as token_embd.weight has", self.value("embedding_length"))
        self.put("num_hidden_layers", "block_count", len(layers))
        self.raw |= {
            "model_type": model_type,
            "vocab_size": embedding[1],
            "tie_word_embeddings": "output.weight" not in self.shapes,
        }
        self.raw |= {"dtype": "float16", "block_auto_adjust_ff_dim": False}
        if prediction:
            self.raw["num_nextn_predict_layers"] = len({name.split(".")[1] for name in prediction})
        self.biases(layers, family)
        self.heads(layers)
        self.kinds(layers, model_type)
        self.widths(layers, family)
        if family.latent:
            self.latent()
        if family.linear != "none":
            self.states(layers, family)
        if model_type in ("gemma3n", "gemma4"):
            self.gemma(layers, model_type)
        if model_type == "nemotron-nas":
            self.blocks(layers)
        return Converted(self.raw, self.origin, layers, prediction)

    def biases(self, layers: Sequence[Mapping[str, object]], family: Family) -> None:
        """Biases and norms are there if their tensors are."""
        everything = {name for block in layers for name in block}
        for key, names in (
            (family.mlp_bias, ("ffn_up.bias",)),
            (family.o_bias, ("attn_output.bias",)),
            (family.qkv_bias, ("attn_q.bias", "attn_qkv.bias")),
        ):
            if isinstance(key, str):
                self.raw[key] = any(name in everything for name in names)
        if family.qk_norm_key:
            self.raw[family.qk_norm_key] = "attn_q_norm.weight" in everything

    def heads(self, layers: Sequence[Mapping[str, object]]) -> None:
        """One number of heads where layers differ only in having none, and another for layers with a window."""
        windows = self.windows(len(layers))
        for name, key in (("num_attention_heads", "attention.head_count"), ("num_key_value_heads", "attention.head_count_kv")):
            listed = self.raw.get(name)
            if not isinstance(listed, list):
                continue
            if len(listed) < len(layers):
                raise self.wrong(key, f"a number for each of the {len(layers)} layers", f"{len(listed)} numbers")
            full = {n for n, window in zip(listed, windows, strict=False) if n and not window}
            sliding = {n for n, window in zip(listed, windows, strict=False) if n and window}
            if (len(full) > 1 or len(sliding) > 1) and self.architecture != "deci":
                raise self.wrong(key, "one number for all layers of a kind", sorted(full | sliding))
            self.put(name, key, max(full or sliding or {0}))
            if sliding and full:
                self.put("swa_" + name, key, max(sliding))
        value = self.value("attention.value_length")
        if isinstance(value, int) and value != self.value("attention.key_length") and self.value("attention.kv_lora_rank") is None:
            self.put("v_head_dim", "attention.value_length", value)
        if self.raw.get("head_dim") is None and isinstance(heads := self.raw.get("num_attention_heads"), int) and heads > 0:
            first = next((block for block in layers if "attn_q.weight" in block), None)
            shape = first["attn_q.weight"] if first is not None else None
            if isinstance(shape, tuple) and len(shape) == 2 and self.architecture not in ("qwen3next", "qwen35", "qwen35moe"):
                self.put("head_dim", "attention.head_count", max(shape[1] // heads, 1))

    def windows(self, layers: int) -> list[bool]:
        pattern = self.value("attention.sliding_window_pattern")
        if isinstance(pattern, list):
            if len(pattern) < layers:
                key = "attention.sliding_window_pattern"
                raise self.wrong(key, f"an entry for each of the {layers} layers", f"{len(pattern)} entries")
            return [bool(one) for one in pattern[:layers]]
        if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
            return [(i + 1) % pattern != 0 for i in range(layers)]
        return [False] * layers

    def kinds(self, layers: Sequence[Mapping[str, object]], model_type: str) -> None:
        """What each layer is, by its tensors."""
        windows = self.windows(len(layers))
        recurrent = [any(name in block for name in STATES) for block in layers]
        if model_type == "nemotron_h":
            self.raw["layers_block_type"] = [
                "mamba"
                if state
                else "moe"
                if "ffn_gate_inp.weight" in block
                else "mlp"
                if "ffn_up.weight" in block
                else "attention"
                for block, state in zip(layers, recurrent, strict=True)
            ]
        elif any(recurrent) and not all(recurrent):
            self.raw["layer_types"] = ["linear_attention" if state else "full_attention" for state in recurrent]
        elif any(windows):
            self.raw["layer_types"] = ["sliding_attention" if window else "full_attention" for window in windows]
        elif model_type == "llama4":
            self.raw |= {"attention_chunk_size": 8192, "no_rope_layer_interval": 4}
        if self.number("expert_count"):
            self.raw["mlp_layer_types"] = ["sparse" if "ffn_gate_inp.weight" in block else "dense" for block in layers]
        elif self.value("expert_count") == 0:
            self.raw.pop("num_experts", None)

    def widths(self, layers: Sequence[Mapping[str, tuple[int, ...]]], family: Family) -> None:
        """Hidden widths, by the shapes of down-projections, which are sure where keys are not."""

        def inputs(name: str) -> list[int]:
            return [block[name][0] for block in layers if name in block]

        dense, routed, shared = inputs("ffn_down.weight"), inputs("ffn_down_exps.weight"), inputs("ffn_down_shexp.weight")
        listed = self.raw.get("intermediate_size")
        if isinstance(listed, int) and dense and listed not in dense and not routed:
            raise self.wrong("feed_forward_length", f"{dense[0]}, as ffn_down.weight has", listed)
        if dense:
            every = [block["ffn_down.weight"][0] if "ffn_down.weight" in block else max(dense) for block in layers]
            width: object = every if len(set(dense)) > 1 else dense[0]
            self.put(family.dense_width[0], "feed_forward_length", width)
        elif isinstance(listed, list):
            self.put("intermediate_size", "feed_forward_length", max((n for n in listed if isinstance(n, int)), default=0))
        if routed:
            self.put(family.expert_width[0], "expert_feed_forward_length", routed[0])
        if shared:
            self.put("shared_expert_intermediate_size", "expert_shared_feed_forward_length", shared[0])
            self.raw["n_shared_experts"] = 1

    def latent(self) -> None:
        """Latent attention: keys of one head are cached, those of each head are computed."""
        rope = self.number("rope.dimension_count")
        key = "attention.key_length_mla" if self.value("attention.key_length_mla") is not None else "attention.key_length"
        value = "attention.value_length_mla" if self.value("attention.value_length_mla") is not None else "attention.value_length"
        self.put("qk_rope_head_dim", "rope.dimension_count", rope or None)
        self.put("qk_nope_head_dim", key, self.number(key) - rope)
        self.put("v_head_dim", value, self.value(value))
        self.raw["num_key_value_heads"] = self.raw.get("num_attention_heads")
        self.raw.pop("head_dim", None)

    def states(self, layers: Sequence[Mapping[str, tuple[int, ...]]], family: Family) -> None:
        """Layers that keep a state."""
        inner, state, ranks = self.number("ssm.inner_size"), self.number("ssm.state_size"), self.number("ssm.time_step_rank")
        kernel, groups = self.value("ssm.conv_kernel"), self.value("ssm.group_count")
        match family.linear:
            case "delta":
                self.put("linear_conv_kernel_dim", "ssm.conv_kernel", kernel)
                self.put("linear_key_head_dim", "ssm.state_size", state)
                self.put("linear_num_key_heads", "ssm.group_count", groups)
                self.put("linear_num_value_heads", "ssm.time_step_rank", ranks)
                self.put("linear_value_head_dim", "ssm.inner_size", inner // max(ranks, 1))
            case "kimi":
                self.put("linear_head_dim", "kda.head_dim", self.value("kda.head_dim"))
                self.put("linear_num_heads", "attention.head_count", self.raw.get("num_attention_heads"))
                self.put("linear_conv_kernel_dim", "ssm.conv_kernel", kernel)
            case "convolution":
                self.raw["conv_bias"] = any("shortconv.conv.bias" in block for block in layers)
            case "mamba1":
                self.put("conv_kernel", "ssm.conv_kernel", kernel)
                self.put("mamba_d_conv", "ssm.conv_kernel", kernel)
                self.put("mamba_d_state", "ssm.state_size", state)
                self.put("mamba_dt_rank", "ssm.time_step_rank", ranks)
                if family.builder == "mamba":
                    self.put("intermediate_size", "ssm.inner_size", inner)
            case "mamba2":
                for name in ("num_heads", "mamba_num_heads", "mamba_n_heads"):
                    self.put(name, "ssm.time_step_rank", ranks)
                head = inner // max(ranks, 1)
                self.put("mamba_d_head", "ssm.inner_size", head)
                self.put("mamba_head_dim", "ssm.inner_size", head)
                self.put("mamba_d_ssm", "ssm.inner_size", inner)
                self.put("n_groups", "ssm.group_count", groups)
                self.put("ssm_state_size", "ssm.state_size", state)
                self.put("conv_kernel", "ssm.conv_kernel", kernel)
                self.raw["mamba_rms_norm"] = any("ssm_norm.weight" in block for block in layers)

    def gemma(self, layers: Sequence[Mapping[str, tuple[int, ...]]], model_type: str) -> None:
        """Gemma 3n and 4: keys of layers with full attention, inputs per layer."""
        table = self.shapes.get("per_layer_token_embd.weight")
        if table is not None:
            self.raw["vocab_size_per_layer_input"] = table[1]
        if (laurel := layers[0].get("laurel_l.weight")) is not None:
            self.raw["laurel_rank"] = laurel[1]
        if model_type == "gemma3n":
            return
        full = [block for block, window in zip(layers, self.windows(len(layers)), strict=True) if not window]
        self.put("global_head_dim", "attention.key_length", self.value("attention.key_length"))
        self.put("head_dim", "attention.key_length_swa", self.value("attention.key_length_swa"))
        self.raw["attention_k_eq_v"] = bool(full) and "attn_k.weight" in full[0] and "attn_v.weight" not in full[0]
        self.put("num_global_key_value_heads", "attention.head_count_kv", self.raw.get("num_key_value_heads"))
        self.put(
            "num_key_value_heads",
            "attention.head_count_kv",
            self.raw.pop("swa_num_key_value_heads", self.raw.get("num_key_value_heads")),
        )
        self.raw["enable_moe_block"] = bool(self.number("expert_count"))

    def blocks(self, layers: Sequence[Mapping[str, tuple[int, ...]]]) -> None:
        """Nemotron NAS: each layer by the shapes of its tensors."""
        heads, width = self.raw.get("num_attention_heads"), self.shapes["token_embd.weight"][0]
        head_dim = self.raw.get("head_dim")
        if not isinstance(heads, int) or not isinstance(head_dim, int) or not heads or not head_dim:
            raise self.wrong("attention.head_count", "a number of heads", heads)
        found = []
        for block in layers:
            attention: dict[str, object] = {"no_op": True}
            if "attn_k.weight" in block:
                attention = {"n_heads_in_group": max(heads // max(block["attn_k.weight"][1] // head_dim, 1), 1)}
            elif "attn_output.weight" in block:
                attention = {"replace_with_linear": True}
            ffn: dict[str, object] = {"no_op": True}
            if "ffn_down.weight" in block:
                ffn = {"ffn_mult": 1.5 * block["ffn_down.weight"][0] / width}
            found.append({"attention": attention, "ffn": ffn})
        self.raw["block_configs"] = found
