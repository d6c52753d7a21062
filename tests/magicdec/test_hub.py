"""Models by their id on the Hub, with a stand-in for the network: nothing here leaves this machine."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import answered, refused, shown

hub = pytest.importorskip("huggingface_hub")
constants, errors = pytest.importorskip("huggingface_hub.constants"), pytest.importorskip("huggingface_hub.errors")
CONFIG = {
    "model_type": "qwen3", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "intermediate_size": 512, "vocab_size": 1000, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network: whoever asks for it fails."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def no_network(*arguments: object, **options: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "get_hf_file_metadata", no_network)
    monkeypatch.setattr(hub, "hf_hub_download", no_network)
    return folder


def cached(cache: Path, repo: str, **files: object) -> Path:
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    for name, content in files.items():
        (snapshot / name).write_text(json.dumps(content))
    return snapshot


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the Hub; `asked` has the files that were downloaded."""
    held = SimpleNamespace(files={}, asked=[], sizes={})

    def metadata(url: str, **options: object) -> SimpleNamespace:
        repo, name = url.removeprefix(f"{constants.ENDPOINT}/").split("/resolve/main/")
        if repo not in held.files:
            raise errors.RepositoryNotFoundError("404", response=_response())
        if name not in held.files[repo]:
            raise errors.EntryNotFoundError("404")
        return SimpleNamespace(size=held.sizes.get(name, len(json.dumps(held.files[repo][name]))))

    def download(repo: str, name: str, **options: object) -> str:
        held.asked.append(name)
        folder = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / "abc"
        if not folder.exists():
            cached(cache, repo)
        (folder / name).write_text(json.dumps(held.files[repo][name]))
        return str(folder / name)

    monkeypatch.setattr(hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    return held


def _response() -> SimpleNamespace:
    return SimpleNamespace(headers={}, request=None, status_code=404)


def test_the_local_cache_comes_first(cache: Path) -> None:
    cached(cache, "someone/some-model", **{"config.json": CONFIG})
    found = answered("models", "someone/some-model")
    assert (found["name"], found["num_layers"]) == ("someone/some-model", 4)
    assert answered("models", "hf:someone/some-model")["num_parameters"] == found["num_parameters"]


def test_a_built_in_model_is_found_without_asking() -> None:
    assert answered("models", "Qwen/Qwen3-8B")["num_layers"] == 36


def test_only_small_json_files_are_fetched_and_then_kept(server: SimpleNamespace) -> None:
    counted = 3_000_000
    index = {"metadata": {"total_size": counted}, "weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    server.files["someone/some-model"] = {"config.json": CONFIG, INDEX: index, "modeling.py": "import os", "model.safetensors": ""}
    first = answered("models", "someone/some-model")
    assert server.asked == ["config.json", INDEX]
    assert first["weight_bytes"] == counted or "far from" in str(first["notes"])
    assert answered("models", "someone/some-model") == first
    assert server.asked == ["config.json", INDEX]


def test_a_plan_takes_an_id_for_target_and_draft(server: SimpleNamespace) -> None:
    server.files["a/target"] = {"config.json": {**CONFIG, "num_hidden_layers": 40}}
    server.files["a/small"] = {"config.json": CONFIG}
    found = answered(
        "predict", "--model", "a/target", "--draft", "hf:a/small", "--hardware", "l40s", "--batch-size", 1, "--context-len", 1000,
        "--acceptance-rate", 0.8,
    )  # fmt: skip
    assert found["predicted_speedup"] > 0


def test_a_file_beyond_the_limit_is_not_fetched(server: SimpleNamespace, cache: Path) -> None:
    server.files["a/big"] = {"config.json": CONFIG}
    server.sizes["config.json"] = 10**9
    assert "a/big', whose config.json has 1,000,000,000 bytes" in refused("models", "a/big")
    assert not list(cache.iterdir())


@pytest.mark.parametrize("name", ["nobody/nothing", "hf:nobody/nothing", "someone/Llama-3.1-8c"])
def test_an_id_that_does_not_exist_gives_one_message(name: str, server: SimpleNamespace, cache: Path) -> None:
    assert f"found '{name}', which the Hub does not have" in refused("models", name)
    assert not list(cache.iterdir())


def test_the_message_has_the_nearest_built_in_names(server: SimpleNamespace) -> None:
    assert "did you mean Llama-3.1-8B" in refused("models", "someone/Llama-3.1-8c")


def test_without_network_there_is_one_message(cache: Path) -> None:
    message = refused("predict", "--model", "a/b", "--hardware", "l40s", "--batch-size", 1, "--context-len", 1000)
    assert "the Hub cannot be asked (ConnectionError: no network)" in message
    assert message.startswith("error: --model: expected a built-in name")
    assert not list(cache.iterdir())


def test_offline_is_heeded(monkeypatch: pytest.MonkeyPatch, server: SimpleNamespace) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.files["a/b"] = {"config.json": CONFIG}
    assert "HF_HUB_OFFLINE is set" in refused("models", "a/b")
    assert not server.asked


def test_a_model_without_config_is_refused(server: SimpleNamespace) -> None:
    server.files["a/b-files"] = {"b-Q4_K_M.gguf": ""}
    assert "which has no config.json on the Hub" in refused("models", "a/b-files")


def test_what_begins_with_a_folder_that_exists_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: SimpleNamespace
) -> None:
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path)
    server.files["checkpoints/mine"] = {"config.json": CONFIG}
    assert "Hub does not" not in refused("models", "checkpoints/mine")
    assert not server.asked


def test_weights_in_the_cache_give_exact_sizes_only_if_all_are_there(cache: Path) -> None:
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    snapshot = cached(cache, "a/part", **{"config.json": CONFIG, INDEX: index})
    (snapshot / "model-00001-of-00002.safetensors").write_bytes(b"damaged")
    assert "4" in shown("models", "a/part")  # half of a download is not read
    (snapshot / "model-00002-of-00002.safetensors").write_bytes(b"damaged")
    assert "header: expected 8 bytes" in refused("models", "a/part")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'magicdec[hub]'" in refused("models", "a/b")
