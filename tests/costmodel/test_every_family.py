"""Every causal language model of transformers, with a small config: read with the modules' counts, or refused in one sentence."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.hf.families import ALIASES, FAMILIES
from magicdec.costmodel.models.hf_config import UnknownFamilyError, parse_hf_config
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.inputs.counted import counted_model

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

MODEL_TYPES = sorted(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
ENCODERS = r"vision|visual|audio|projector|connector|image"
SMALL: dict[str, Any] = {"vocab_size": 500, "num_hidden_layers": 6, "n_layer": 6, "pad_token_id": 0}
# What some defaults need to be a config at all.
NEEDED: dict[str, dict[str, Any]] = {
    "nemotron": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 8, "moe_topk": 2},
    "nemotron_h": {"num_hidden_layers": None, "n_layer": None},
    "mimo_v2_flash": {"swa_num_key_value_heads": 8, "swa_head_dim": 192, "swa_v_head_dim": 128},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "glm4_moe": {"head_dim": 128},
    "gemma3n_text": {"num_kv_shared_layers": 2, "intermediate_size": 256},
    "gemma4_text": {"num_kv_shared_layers": 2},
    "ernie4_5_moe": {"moe_layer_end_index": 5},
}


@cache
def built(model_type: str) -> tuple[dict[str, Any], Any]:
    """A config as transformers saves it, and its modules on the meta device."""
    changes = {**SMALL, **NEEDED.get(model_type, {})}
    given = {key: value for key, value in changes.items() if value is not None}
    try:
        config = transformers.AutoConfig.for_model(model_type, **given)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
    except Exception as error:
        pytest.skip(f"transformers cannot build a small one: {type(error).__name__}")
    return {**given, **json.loads(config.to_json_string())}, model


def read(raw: dict[str, Any]) -> TransformerConfig | InputError:
    """The model by our readers, else counted from the modules, else why not."""
    try:
        return parse_hf_config(raw, where="config.json", name="small")
    except UnknownFamilyError as unknown:
        try:
            return counted_model(raw, where="config.json", name="small", error=unknown)
        except InputError as error:
            return error
    except InputError as error:
        return error


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_small_config_of_every_family_is_read_or_refused(model_type: str) -> None:
    if model_type == "longcat_flash":
        pytest.skip("its modules hold matrices for empty experts, which the published 560B do not")
    raw, model = built(model_type)
    found = read(raw)
    if isinstance(found, InputError):
        assert model_type not in FAMILIES, str(found)
        assert len(str(found)) < 500
        return
    counted = any("counted from the modules" in note for note in found.notes)
    named = model.named_parameters()
    whole = sum(p.numel() for name, p in named if counted or not re.search(ENCODERS, name))
    assert found.params == whole


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_no_other_name_of_one(name: str) -> None:
    assert name not in ALIASES
    assert set(ALIASES.values()) <= set(FAMILIES)
