"""Checkpoints are read tensor by tensor; what is wrong with one is said all at once, and nothing is ever unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import logits_TV, perturbed, random_prompts, save_checkpoint, tiny_model, weights_of

from magicdec.costmodel.base.errors import InputError, Problem
from magicdec.executor.kernels import build as compiled
from magicdec.executor.model import checkpoint
from magicdec.executor.model.checkpoint import checkpoint_digest, load_model, stop_tokens
from magicdec.executor.model.tensor_parallel import Ranks
from magicdec.executor.model.transformer import Transformer

TOKENS = random_prompts((12,))[0]


def problems_of(folder: Path) -> list[Problem]:
    with pytest.raises(InputError) as caught:
        load_model(folder)
    return list(caught.value.problems)


WIDE = {"d_model": 48, "head_dim": 16, "d_ff": 80}  # as the C kernels want it


def types_of(model: Transformer) -> tuple[set[torch.dtype], set[torch.dtype]]:
    """Of the matrices, and of all else."""
    matrices = {p for p in model.parameters() if p.ndim == 2}
    return {p.dtype for p in matrices}, {p.dtype for p in model.parameters() if p not in matrices} | {model.cos_PH.dtype}


@pytest.mark.skipif(compiled.kernels() is None, reason="needs a C compiler")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "changes", [{}, {"tied_embeddings": True}, {"family": "qwen2", "qkv_bias": True}], ids=["plain", "tied", "bias"]
)
@torch.inference_mode()
def test_on_a_cpu_matrices_stay_in_their_16_bits_and_nothing_else_changes(
    changes: dict[str, Any], dtype: str, tmp_path: Path
) -> None:
    """In single steps, several tokens at once and long prompts."""
    save_checkpoint(tmp_path, tiny_model(dtype=dtype, **WIDE, **changes))
    narrow, wide = load_model(tmp_path), load_model(tmp_path, dtype="float32")
    assert types_of(narrow) == ({getattr(torch, dtype)}, {torch.float32})
    assert types_of(wide) == ({torch.float32}, {torch.float32})
    for rows, length in ((1, 1), (3, 2), (16, 1), (7, 5), (2, 200)):
        tokens_BT = torch.randint(31, (rows, length), generator=torch.Generator().manual_seed(rows))
        found, wanted = (model.logits(model(tokens_BT, torch.arange(length)[None])) for model in (narrow, wide))
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(("stored", "declared"), [("float32", "bfloat16"), ("float32", None), ("bfloat16", "float16")])
def test_what_is_stored_otherwise_than_it_says_is_not_rounded(stored: str, declared: str | None, tmp_path: Path) -> None:
    model = tiny_model(dtype=stored, **WIDE)
    save_checkpoint(tmp_path, model)
    facts = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    facts["dtype"] = declared
    (tmp_path / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    loaded = load_model(tmp_path)
    assert types_of(loaded) == ({torch.float32}, {torch.float32})
    for found, wanted in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(found, wanted.float())


@pytest.mark.skipif(compiled.kernels() is None, reason="needs a C compiler")
@pytest.mark.parametrize("tied", [True, False])
def test_layers_and_tables_may_be_stored_in_types_of_their_own(tied: bool, tmp_path: Path) -> None:
    """A head in float32 beside layers in 16 bits; of a tied one nobody reads."""
    model = tiny_model(dtype="bfloat16", tied_embeddings=tied, **WIDE)
    weights = {**weights_of(model), "lm_head.weight": torch.randn(31, WIDE["d_model"])}
    save_checkpoint(tmp_path, model, weights)
    loaded = load_model(tmp_path)
    assert {p.dtype for p in loaded.model.layers.parameters() if p.ndim == 2} == {torch.bfloat16}
    assert loaded.model.embed_tokens.weight.dtype == loaded.lm_head.weight.dtype == (torch.bfloat16 if tied else torch.float32)
    assert torch.equal(loaded.lm_head.weight.float(), weights["model.embed_tokens.weight" if tied else "lm_head.weight"].float())
    tokens_BT, positions_BT = torch.tensor([[3, 1, 4, 1]] * 2), torch.arange(4)[None]
    wide = load_model(tmp_path, dtype="float32")
    with torch.inference_mode():
        found, wanted = (one.logits(one(tokens_BT, positions_BT)) for one in (loaded, wide))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("why", ["shape", "compiler", "processes"])
def test_where_torch_computes_the_layers_on_a_cpu_all_is_in_float32(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, tiny_model(dtype="bfloat16", **{**WIDE, "head_dim": 8 if why == "shape" else 16}))
    if why == "compiler":
        monkeypatch.setattr(checkpoint, "kernels", lambda: None)
    model = load_model(tmp_path, ranks=Ranks(0, 2) if why == "processes" else Ranks())
    assert types_of(model) == ({torch.float32}, {torch.float32})


@pytest.mark.parametrize(
    "changes",
    [{}, {"tied_embeddings": True}, {"family": "qwen2", "qkv_bias": True}, {"family": "qwen3", "qk_norm": True}],
    ids=["plain", "tied", "bias", "qk-norm"],
)
def test_a_saved_model_loads_as_it_was(changes: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(**changes)
    save_checkpoint(tmp_path / "tiny", model)
    loaded = load_model(tmp_path / "tiny")
    assert loaded.config == model.config
    assert torch.equal(logits_TV(loaded, TOKENS), logits_TV(model, TOKENS))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_name_is_that_of_the_folder_unless_given(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "some-model", tiny_model())
    assert load_model(tmp_path / "some-model").config.name == "some-model"
    assert load_model(tmp_path / "some-model", name="other").config.name == "other"


def test_a_tied_model_shares_one_matrix_and_ignores_a_saved_head(tmp_path: Path) -> None:
    model = tiny_model(tied_embeddings=True)
    weights = weights_of(model)
    assert "lm_head.weight" not in weights
    save_checkpoint(tmp_path, model, {**weights, "lm_head.weight": torch.zeros(31, 32, dtype=torch.float64)})
    loaded = load_model(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(logits_TV(loaded, TOKENS), logits_TV(model, TOKENS))


def test_buffers_of_old_checkpoints_are_ignored(tmp_path: Path) -> None:
    model = tiny_model()
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "model.layers.1.attn.masked_bias": torch.ones(1)}
    save_checkpoint(tmp_path, model, {**weights_of(model), **extra})
    assert torch.equal(logits_TV(load_model(tmp_path), TOKENS), logits_TV(model, TOKENS))


@pytest.mark.parametrize("with_index", [False, True])
def test_a_checkpoint_in_several_files_loads_as_one(with_index: bool, tmp_path: Path) -> None:
    model = tiny_model()
    save_checkpoint(tmp_path, model)
    (tmp_path / "model.safetensors").unlink()
    weights = weights_of(model)
    names = sorted(weights)
    index: dict[str, str] = {}
    for number in range(3):
        file = f"model-0000{number + 1}-of-00003.safetensors"
        save_file({name: weights[name] for name in names[number::3]}, tmp_path / file)
        index |= dict.fromkeys(names[number::3], file)
    if with_index:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert torch.equal(logits_TV(load_model(tmp_path), TOKENS), logits_TV(model, TOKENS))


def test_a_file_that_the_index_does_not_name_is_not_read(tmp_path: Path) -> None:
    """Mistral's own repositories hold the same weights again, under other names, in consolidated.safetensors."""
    model = tiny_model()
    save_checkpoint(tmp_path, model)
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights_of(model), "model.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"layers.0.attention.wq.weight": torch.zeros(32, 32)}, tmp_path / "consolidated.safetensors")
    assert torch.equal(logits_TV(load_model(tmp_path), TOKENS), logits_TV(model, TOKENS))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ""])
def test_an_index_names_only_files_of_its_own_folder(name: str, tmp_path: Path) -> None:
    model = tiny_model()
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_checkpoint(folder, model)
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights_of(model), name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (problem,) = problems_of(folder)
    assert problem.key == "weight_map"
    assert "same folder" in problem.expected


def test_a_missing_file_of_several_is_told_by_its_tensors(tmp_path: Path) -> None:
    model = tiny_model()
    weights = weights_of(model)
    save_checkpoint(tmp_path, model, {name: weights[name] for name in weights if ".layers.1." not in name})
    problems = problems_of(tmp_path)
    assert [problem.key for problem in problems] == sorted(name for name in weights if ".layers.1." in name)
    assert all(problem.found == "nothing" for problem in problems)


def test_a_missing_tensor_is_named_with_the_shape_it_should_have(tmp_path: Path) -> None:
    weights = weights_of(tiny_model())
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_checkpoint(tmp_path, tiny_model(), weights)
    (problem,) = problems_of(tmp_path)
    assert problem.where == str(tmp_path)
    assert problem.key == "model.layers.1.mlp.up_proj.weight"
    assert "[48, 32]" in problem.expected
    assert problem.found == "nothing"


def test_a_tensor_too_many_is_named_with_its_file_and_shape(tmp_path: Path) -> None:
    weights = {**weights_of(tiny_model()), "model.layers.2.mlp.up_proj.weight": torch.zeros(48, 32)}
    save_checkpoint(tmp_path, tiny_model(), weights)
    (problem,) = problems_of(tmp_path)
    assert problem.where == str(tmp_path / "model.safetensors")
    assert problem.key == "model.layers.2.mlp.up_proj.weight"
    assert "no such tensor" in problem.expected
    assert "[48, 32]" in problem.found


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    weights = {**weights_of(tiny_model()), "model.norm.weight": torch.zeros(33)}
    save_checkpoint(tmp_path, tiny_model(), weights)
    (problem,) = problems_of(tmp_path)
    assert problem.where == str(tmp_path / "model.safetensors")
    assert problem.key == "model.norm.weight"
    assert "[32]" in problem.expected
    assert "[33]" in problem.found


def test_everything_wrong_with_a_checkpoint_is_said_at_once(tmp_path: Path) -> None:
    weights = weights_of(tiny_model())
    del weights["lm_head.weight"]
    weights["model.norm.weight"] = torch.zeros(33)
    weights["surplus"] = torch.zeros(2)
    save_checkpoint(tmp_path, tiny_model(), weights)
    with pytest.raises(InputError) as caught:
        load_model(tmp_path)
    assert {problem.key for problem in caught.value.problems} == {"lm_head.weight", "model.norm.weight", "surplus"}
    message = str(caught.value)
    assert len(message.splitlines()) == 3
    assert all(f"expected {problem.expected}, found {problem.found}" in message for problem in caught.value.problems)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused_and_the_reason_is_given(name: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model())
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights_of(tiny_model()), tmp_path / name)
    (problem,) = problems_of(tmp_path)
    assert problem.where == str(tmp_path)
    assert "safetensors" in problem.expected
    assert name in problem.found
    assert "pickle" in problem.found
    assert "any code" in problem.found


def test_a_pickle_beside_the_safetensors_is_left_alone(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model())
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert torch.equal(logits_TV(load_model(tmp_path), TOKENS), logits_TV(tiny_model(), TOKENS))


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model())
    (tmp_path / "model.safetensors").unlink()
    (problem,) = problems_of(tmp_path)
    assert (problem.where, problem.found) == (str(tmp_path), "none")


@pytest.mark.parametrize("damage", ["emptied", "cut short", "other bytes"])
def test_a_corrupt_file_is_named(damage: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model())
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes({"emptied": b"", "cut short": whole[: len(whole) // 2], "other bytes": b"\xff" * 4096}[damage])
    (problem,) = problems_of(tmp_path)
    assert problem.where == str(file)
    assert "readable safetensors" in problem.expected
    assert problem.found


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model())
    (tmp_path / "config.json").unlink()
    (problem,) = problems_of(tmp_path)
    assert problem.where == str(tmp_path / "config.json")
    assert "No such file" in problem.found


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in problem.where


def test_a_bad_key_of_the_config_is_named_with_its_file(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}), encoding="utf-8")
    (problem,) = problems_of(tmp_path)
    assert problem.where == str(tmp_path / "config.json")
    assert problem.key == "hidden_size"
    assert "wide" in problem.found


# Stop tokens.


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def test_stop_tokens_come_from_the_generation_config_before_the_config(tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"eos_token_id": 1})
    assert stop_tokens(tmp_path) == (1,)
    write(tmp_path, "generation_config.json", {"eos_token_id": [2, 3]})
    assert stop_tokens(tmp_path) == (2, 3)


@pytest.mark.parametrize(("found", "wanted"), [(0, (0,)), (7, (7,)), ([7], (7,)), ([5, 0, 9], (5, 0, 9)), ([], ())])
def test_stop_tokens_are_one_id_or_a_list(found: object, wanted: tuple[int, ...], tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"eos_token_id": found})
    assert stop_tokens(tmp_path) == wanted


@pytest.mark.parametrize("generation", [{}, {"eos_token_id": None}, {"temperature": 0.6}])
def test_a_generation_config_without_stop_tokens_leaves_those_of_the_config(generation: object, tmp_path: Path) -> None:
    write(tmp_path, "generation_config.json", generation)
    write(tmp_path, "config.json", {"eos_token_id": 4})
    assert stop_tokens(tmp_path) == (4,)


def test_without_any_there_are_no_stop_tokens(tmp_path: Path) -> None:
    assert stop_tokens(tmp_path) == ()
    write(tmp_path, "config.json", {"vocab_size": 4})
    assert stop_tokens(tmp_path) == ()


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"eos_token_id": "end"}'], ids=["cut-short", "a-list", "a-word"])
def test_a_generation_config_that_makes_no_sense_is_bad_input(text: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        stop_tokens(tmp_path)
    assert caught.value.problems[0].where == str(tmp_path / "generation_config.json")


def test_a_checkpoints_digest_is_that_of_its_weights(tmp_path: Path) -> None:
    model = tiny_model()
    save_checkpoint(tmp_path / "a", model)
    save_checkpoint(tmp_path / "again", model)
    save_checkpoint(tmp_path / "other", perturbed(model, 1e-6))
    digests = [checkpoint_digest(tmp_path / name) for name in ("a", "again", "other")]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("family", ["mixtral", "gemma3"])
def test_an_architecture_that_is_planned_but_not_executed_is_refused_in_one_sentence(family: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    known = {"num_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * config["num_hidden_layers"]}
    write(tmp_path, "config.json", {**config, **known, "model_type": family})
    (problem,) = problems_of(tmp_path)
    assert (problem.where, problem.key) == (str(tmp_path / "config.json"), "model_type")
    assert "llama" in problem.expected
    assert family in problem.found
