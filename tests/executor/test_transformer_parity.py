"""The decoder computes what Hugging Face transformers computes, for every family and every kind of rotary scaling it knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding import decode_all, requests_of
from tiny_models import TINY, random_prompts
from torch import Tensor, nn

from magicdec.costmodel.models.architecture import RopeScaling
from magicdec.costmodel.models.hf_config import load_config
from magicdec.executor.engine.batch import Batch
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.kv.attention import PrefillAttention, SlotAttention
from magicdec.executor.kv.cache import KvCache
from magicdec.executor.model.checkpoint import load_model
from magicdec.executor.model.rotary import rope_tables, rotate
from magicdec.executor.model.transformer import Transformer, attend_causal

transformers = pytest.importorskip("transformers")

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama with one KV head": ("Llama", {"num_key_value_heads": 1}),
    "llama with as many KV heads as query heads": ("Llama", {"num_key_value_heads": 6}),
    "llama with tied embeddings": ("Llama", {"tie_word_embeddings": True}),
    "llama with heads wider than the model": ("Llama", {"head_dim": 16}),
    "llama with another rotary base": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
    "llama with linear scaling": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}}),
    "llama with llama3 scaling": ("Llama", {"rope_parameters": {**LLAMA3, "rope_theta": 1e3}}),
    "llama with yarn": ("Llama", {"rope_parameters": {**YARN, "rope_theta": 1e4}}),
    "llama with yarn and all its settings": (
        "Llama",
        {"rope_parameters": {**YARN, "rope_theta": 1e3, "beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.3}},
    ),
    "mistral without a window": ("Mistral", {"sliding_window": None}),
    "mistral with a window of 11": ("Mistral", {"sliding_window": 11}),
    "mistral with a window wider than the text": ("Mistral", {"sliding_window": 100}),
    "qwen2": ("Qwen2", {}),
    "qwen2 with tied embeddings": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 with yarn": ("Qwen2", {"rope_parameters": {**YARN, "rope_theta": 1e4}}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3 with tied embeddings": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
}
PROMPT_LENGTHS = (1, 9, 40)


def hf_model(family: str, changes: dict[str, Any], seed: int = 0) -> Any:
    """A random model of transformers, its norms and biases random too."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(0.2 * torch.randn_like(parameter))
            assert name.endswith(("norm.weight", "bias"))
    return model


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Transformer]]:
    """A model of transformers, and ours loaded from what it saved."""
    theirs = hf_model(*CASES[request.param])
    folder = tmp_path_factory.mktemp("checkpoint")
    theirs.save_pretrained(folder)
    return theirs, load_model(folder)


def slot_logits(model: Transformer, tokens: list[int]) -> Tensor:
    """Logits after every token, all of them new to an empty cache, as verification reads them."""
    cache = KvCache(model.config, 1, len(tokens), model.device, model.dtype)
    positions_BT = torch.arange(len(tokens))[None]
    attend = SlotAttention(cache, positions_BT, model.config.sliding_window)
    return model.logits(model(torch.tensor([tokens]), positions_BT, attend))[0]


def prefill_logits(model: Transformer, tokens: list[int]) -> Tensor:
    """The same as a prompt is read."""
    cache = KvCache(model.config, 1, len(tokens), model.device, model.dtype)
    attend = PrefillAttention(cache, 0, 0, model.config.sliding_window)
    return model.logits(model(torch.tensor([tokens]), torch.arange(len(tokens))[None], attend))[0]


def hf_logits(model: Any, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


def hf_greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    generated = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=count,
        use_cache=True,
    )
    tokens: list[int] = generated[0, len(prompt) :].tolist()
    return tokens


def test_logits_of_a_whole_text_are_those_of_transformers(pair: tuple[Any, Transformer]) -> None:
    theirs, ours = pair
    tokens = random_prompts((60,), vocab_size=61)[0]
    wanted = hf_logits(theirs, tokens)
    assert wanted.std() > 0.5, "logits all alike would agree anyway"
    torch.testing.assert_close(slot_logits(ours, tokens), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prefill_logits(ours, tokens), wanted, atol=1e-4, rtol=1e-4)


def test_without_a_window_the_decoder_needs_no_cache_for_them(pair: tuple[Any, Transformer]) -> None:
    theirs, ours = pair
    tokens = random_prompts((9,), vocab_size=61)[0]  # shorter than any window
    found = ours.logits(ours(torch.tensor([tokens]), torch.arange(9)[None]))[0]
    torch.testing.assert_close(found, hf_logits(theirs, tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_decoding_step_by_step_is_greedy_generation_of_transformers(pair: tuple[Any, Transformer]) -> None:
    theirs, ours = pair
    prompts = random_prompts(PROMPT_LENGTHS, vocab_size=61)
    batch = Batch(ours, requests_of(prompts), GenerationSettings(20))
    batch.prefill()
    assert decode_all(batch).outputs == [hf_greedy(theirs, prompt, 20) for prompt in prompts]


def test_the_window_of_a_mistral_changes_its_logits_beyond_it() -> None:
    """Else the comparisons over a window would say nothing."""
    narrow, wide = hf_model("Mistral", {"sliding_window": 11}), hf_model("Mistral", {"sliding_window": 100})
    tokens = random_prompts((60,), vocab_size=61)[0]
    difference_T = (hf_logits(narrow, tokens) - hf_logits(wide, tokens)).abs().amax(-1)
    assert float(difference_T[:11].max()) < 1e-5 < 0.1 < float(difference_T[11:].max())


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_rotary_scaling_changes_the_logits(kind: str) -> None:
    """Else the comparisons with scaling would say nothing."""
    tokens = random_prompts((60,), vocab_size=61)[0]
    parameters = {"rope_type": kind, "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32}
    if kind == "llama3":
        parameters |= LLAMA3
    plain, scaled = hf_model("Llama", {}), hf_model("Llama", {"rope_parameters": parameters})
    assert float((hf_logits(plain, tokens) - hf_logits(scaled, tokens)).abs().max()) > 0.1


class RotaryInFloat64(nn.Module):
    """Transformers computes rotary angles in float32, also in a float64 model: this is the textbook formula in float64."""

    def __init__(self, head_dim: int, theta: float):
        super().__init__()
        self.frequencies = torch.tensor([theta ** (-2 * i / head_dim) for i in range(head_dim // 2)], dtype=torch.float64)

    def forward(self, x: Tensor, position_ids: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].double() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_in_float64_logits_agree_to_twelve_digits(family: str, tmp_path: Path) -> None:
    theirs = hf_model(family, {"head_dim": 8} if family == "Qwen3" else {}).double()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, dtype="float64")
    assert ours.dtype == torch.float64
    theirs.model.rotary_emb = RotaryInFloat64(ours.config.head_dim, 10000.0)
    for module in theirs.modules():  # its RMS norms pass through float32 too
        if type(module).__name__.endswith("RMSNorm"):
            norm = nn.RMSNorm(tuple(module.weight.shape), eps=module.variance_epsilon)
            norm.weight = module.weight
            module.forward = norm.forward
    tokens = random_prompts((60,), vocab_size=61)[0]
    torch.testing.assert_close(slot_logits(ours, tokens), hf_logits(theirs, tokens), atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_a_checkpoint_can_be_loaded_in_another_type(dtype: str, tmp_path: Path) -> None:
    theirs = hf_model("Llama", {})
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, dtype=dtype)
    assert {p.dtype for p in ours.parameters()} == {getattr(torch, dtype)} == {ours.cos_PH.dtype}
    assert ours.config.dtype == dtype
    tokens = random_prompts((30,), vocab_size=61)[0]
    found, wanted = slot_logits(ours, tokens).double(), hf_logits(theirs, tokens).double()
    tolerance = {"float64": 1e-5, "bfloat16": 0.1, "float16": 0.02}[dtype]
    assert float((found - wanted).norm() / wanted.norm()) < tolerance


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_type_of_a_checkpoint_is_found_under_either_key(key: str, tmp_path: Path) -> None:
    hf_model("Llama", {}).half().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (config.pop("dtype", None) or config.pop("torch_dtype", None)) == "float16"
    config[key] = "float16"
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert load_config(tmp_path).dtype == "float16"


def test_older_keys_for_rotary_scaling_mean_the_same(tmp_path: Path) -> None:
    theirs = hf_model("Llama", {"rope_parameters": {**LLAMA3, "rope_theta": 1e3}})
    theirs.save_pretrained(tmp_path)
    new = load_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    scaling["type"] = scaling.pop("rope_type")
    config["rope_scaling"] = scaling
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    old = load_model(tmp_path)
    assert old.config == new.config
    assert old.config.rope_scaling is not None
    assert torch.equal(old.cos_PH, new.cos_PH)


# What can be checked without transformers.


def test_rotation_keeps_lengths_and_makes_scores_depend_on_the_distance_alone() -> None:
    cos_PH, sin_PH = rope_tables(TINY)
    generator = torch.Generator().manual_seed(0)
    q_H, k_H = torch.randn(2, TINY.head_dim, generator=generator, dtype=torch.float64)

    def at(x_H: Tensor, position: int) -> Tensor:
        x_BNTH = x_H[None, None, None]
        return rotate(x_BNTH, cos_PH[None, position : position + 1], sin_PH[None, position : position + 1]).flatten()

    assert float(at(q_H, 100).norm()) == pytest.approx(float(q_H.norm()))
    near, far = at(q_H, 9) @ at(k_H, 4), at(q_H, 209) @ at(k_H, 204)
    assert float(near) == pytest.approx(float(far))
    assert float(near) != pytest.approx(float(at(q_H, 9) @ at(k_H, 5)))


def test_rotary_tables_cover_every_position_and_start_unrotated() -> None:
    cos_PH, sin_PH = rope_tables(TINY)
    assert cos_PH.shape == sin_PH.shape == (TINY.max_context_len, TINY.head_dim)
    assert cos_PH.dtype == torch.float64
    assert bool((cos_PH[0] == 1).all())
    assert bool((sin_PH[0] == 0).all())


def test_yarn_without_an_attention_factor_uses_the_one_of_the_paper() -> None:
    scaled = replace(TINY, rope_scaling=RopeScaling("yarn", factor=4.0, original_context_len=64))
    cos_PH, _ = rope_tables(scaled)
    assert float(cos_PH[0, 0]) == pytest.approx(0.1 * 1.3862943611198906 + 1)  # 0.1 ln 4 + 1, arXiv 2309.00071 eq. 22


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_causal_attention_ignores_what_comes_later(kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q_BNTH = torch.randn(1, 4, 6, 8, generator=generator, dtype=torch.float64)
    k_BKTH, v_BKTH = torch.randn(2, 1, kv_heads, 6, 8, generator=generator, dtype=torch.float64)
    whole = attend_causal(0, q_BNTH, k_BKTH, v_BKTH)
    part = attend_causal(0, q_BNTH[:, :, :4], k_BKTH[:, :, :4], v_BKTH[:, :, :4])
    torch.testing.assert_close(whole[:, :, :4], part)
    first = v_BKTH[:, :, :1].repeat_interleave(4 // kv_heads, dim=1)
    torch.testing.assert_close(whole[:, :, :1], first)
