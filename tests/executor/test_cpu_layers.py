"""Layers in C compute what torch's do, for every shape they are used for, and are not used for others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor

from magicdec.executor.kernels import build as compiled
from magicdec.executor.kernels import cpu_bindings
from magicdec.executor.kv.attention import SlotAttention
from magicdec.executor.kv.cache import KvCache
from magicdec.executor.model import dtypes
from magicdec.executor.model.transformer import Transformer, attend_causal
from magicdec.executor.system.machine import instruction_sets

pytestmark = pytest.mark.skipif(compiled.kernels() is None, reason="needs a C compiler")


SHAPE = {"d_model": 48, "head_dim": 16, "d_ff": 80, "num_layers": 2}
FEATURES = {
    "plain": {},
    "grouped queries": {"num_heads": 6, "num_kv_heads": 2},
    "biases": {"qkv_bias": True},
    "norms of queries and keys": {"qk_norm": True, "num_kv_heads": 1},
}


@torch.inference_mode()
def logits(model: Transformer, tokens_BT: Tensor) -> Tensor:
    return model.logits(model(tokens_BT, torch.arange(3, 3 + tokens_BT.shape[1])[None], attend_causal))


def in_torch(model: Transformer, tokens_BT: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    with monkeypatch.context() as patched:
        patched.setattr(cpu_bindings, "usable", lambda weight: False)
        return logits(model, tokens_BT)


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 3), (4, 1), (3, 5), (16, 1), (17, 1), (3, 11), (5, 16), (7, 9), (2, 137)])
def test_logits_are_those_of_torch(shape: tuple[int, int], feature: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token; tiles of four and what is left of them; whole panels of sixteen, and both; more than are computed at once."""
    changes = {**SHAPE, **FEATURES[feature], "vocab_size": 43}
    model = tiny_model(dtype="float32", **changes)
    exact = tiny_model(dtype="float64", **changes)
    exact.load_state_dict({name: x.double() for name, x in model.state_dict().items()})
    tokens_BT = torch.randint(43, shape, generator=torch.Generator().manual_seed(0))
    found, others, wanted = logits(model, tokens_BT), in_torch(model, tokens_BT, monkeypatch), logits(exact, tokens_BT)
    assert found.dtype == torch.float32
    assert found.shape == wanted.shape
    error, others_error = (float((x.double() - wanted).abs().max()) for x in (found, others))
    assert error <= max(4 * others_error, 1e-5 * float(wanted.abs().max()))
    assert not torch.equal(found, others), "the same to the last bit: were these computed in C at all?"


@pytest.mark.parametrize("rows", [1, 3, 16, 40])
@pytest.mark.parametrize(("width", "outputs"), [(16, 1), (32, 7), (64, 8), (16, 29), (256, 64)])
def test_a_product_is_a_product(rows: int, width: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(rows, 1, width, generator=generator), torch.randn(outputs, width, generator=generator)
    found = cpu_bindings.linear(x.transpose(0, 1), weight)
    torch.testing.assert_close(found.double(), x.transpose(0, 1).double() @ weight.double().T, atol=1e-5 * width**0.5, rtol=0)


@pytest.mark.parametrize("rows", [1, 4, 16, 35])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_product_reads_every_number_of_16_bits(dtype: torch.dtype, rows: int) -> None:
    """Each multiplied by one, among zeros: the smallest and infinities too; what is no number stays none."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    weight = torch.zeros(len(numbers), 16, dtype=dtype)
    weight[:, 3] = numbers
    x = torch.zeros(rows, 16)
    x[:, 3] = 1
    found = cpu_bindings.linear(x, weight)
    assert torch.equal(found.nan_to_num(nan=1e30), numbers.float().expand(rows, -1).nan_to_num(nan=1e30))


@torch.inference_mode()
def test_they_are_used_where_they_can_be_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.zeros(8, 32)
    assert cpu_bindings.usable(weight)
    assert not cpu_bindings.usable(weight.double())
    assert not cpu_bindings.usable(torch.zeros(8, 24))
    assert not cpu_bindings.usable(torch.zeros(32, 8).T)
    assert not cpu_bindings.usable(torch.zeros(8, 32, device="meta"))
    with torch.inference_mode(False), torch.enable_grad():
        assert not cpu_bindings.usable(weight), "nothing could be trained through them"
    monkeypatch.setattr(cpu_bindings, "kernels", lambda: None)
    assert not cpu_bindings.usable(weight)


@pytest.mark.parametrize("odd", [{"d_ff": 88}, {"head_dim": 8}])
def test_odd_dimensions_are_left_to_torch(odd: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(dtype="float32", tied_embeddings=True, **{**SHAPE, **odd})
    tokens_BT = torch.tensor([[1, 2, 3]])
    assert not dtypes.kernels_fit(model.config)
    torch.testing.assert_close(logits(model, tokens_BT), in_torch(model, tokens_BT, monkeypatch))


def test_weights_that_are_changed_in_place_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens_BT = tiny_model(dtype="float32", **SHAPE), torch.tensor([[1, 2, 3]])
    before = logits(model, tokens_BT)
    model.model.layers[1].mlp.down_proj.weight.mul_(2)
    after = logits(model, tokens_BT)
    assert float((after - before).abs().max()) > 1e-2
    torch.testing.assert_close(after, in_torch(model, tokens_BT, monkeypatch), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif("avx2" not in instruction_sets(), reason="needs a processor with AVX2")
@pytest.mark.slow
@pytest.mark.parametrize(("compiler", "processor"), [("gcc", "x86-64"), ("clang", "x86-64-v3")])
def test_processors_with_shorter_vectors_compute_the_same(compiler: str, processor: str, tmp_path: Path) -> None:
    """The same sources as a processor without AVX-512 compiles them, and one whose vectors no line is written for.

    The kernels that clang builds on Linux bring their own OpenMP runtime, since torch's is GCC's.
    """
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    here = Path(__file__)
    files = [str(here.with_name(name)) for name in (here.name, "test_attention.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", "logits or product or ragged"]
    settings = {"MAGICDEC_CC": compiler, "MAGICDEC_CFLAGS": f"-march={processor}", "XDG_CACHE_HOME": str(tmp_path)}
    ran = subprocess.run(command, env={**os.environ, **settings}, cwd=here.parents[2], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert sorted(file.suffix for file in (tmp_path / "magicdec").iterdir()) == [".sha256", ".so"]


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize(("rows", "length", "head_dim"), [(1, 1, 32), (3, 4, 32), (17, 1, 64), (5, 7, 96)])
def test_layers_at_once_are_layers_one_by_one_to_the_last_bit(
    rows: int, length: int, head_dim: int, feature: str, window: int | None
) -> None:
    """The same pass over a cache, once watched, so that each layer's attention is called by itself."""
    model = tiny_model(dtype="float32", **{**SHAPE, **FEATURES[feature], "head_dim": head_dim})
    generator = torch.Generator().manual_seed(rows)
    caches = [KvCache(model.config, rows, 60, torch.device("cpu"), torch.float32) for _ in range(2)]
    for name in ("k_LBKSH", "v_LBKSH"):
        noise = torch.randn(caches[0].k_LBKSH.shape, generator=generator)
        for cache in caches:
            getattr(cache, name).copy_(noise)
    starts_B = torch.randint(0, 60 - length, (rows,), generator=generator)
    tokens_BT = torch.randint(0, model.config.vocab_size, (rows, length), generator=generator)
    positions_BT = starts_B[:, None] + torch.arange(length)
    watched: list[int] = []
    with torch.inference_mode():
        at_once = model(tokens_BT, positions_BT, SlotAttention(caches[0], positions_BT, window))
        watch = lambda layer, q_BNTH, positions_BT: watched.append(layer)  # noqa: E731
        one_by_one = model(tokens_BT, positions_BT, SlotAttention(caches[1], positions_BT, window, query_hook=watch))
    assert watched == [0, 1]
    assert torch.equal(at_once, one_by_one)
    assert torch.equal(caches[0].k_LBKSH, caches[1].k_LBKSH)
    assert torch.equal(caches[0].v_LBKSH, caches[1].v_LBKSH)


def test_a_slot_beyond_the_cache_is_refused() -> None:
    model = tiny_model(dtype="float32", **{**SHAPE, "head_dim": 32})
    cache = KvCache(model.config, 1, 8, torch.device("cpu"), torch.float32)
    with torch.inference_mode(), pytest.raises(IndexError, match="slot 8 in a cache of 8"):
        model(torch.tensor([[1, 2]]), torch.tensor([[7, 8]]), SlotAttention(cache, torch.tensor([[7, 8]])))


@pytest.mark.parametrize(("rows", "vocab_size"), [(1, 1), (3, 5), (16, 16), (5, 37)])
def test_the_greedy_token_is_the_first_of_the_largest_logits(rows: int, vocab_size: int) -> None:
    """Few different weights in the LM head and one non-zero input, so that logits are equal whatever the order of summation."""
    model = tiny_model(dtype="float32", **{**SHAPE, "head_dim": 32, "vocab_size": 40})
    model.model.norm.weight[1:] = 0
    model.lm_head.weight.copy_(
        torch.randint(0, 3, (40, 1), generator=torch.Generator().manual_seed(0)).expand(-1, SHAPE["d_model"])
    )
    cache = KvCache(model.config, rows, 8, torch.device("cpu"), torch.float32)
    tokens_BT, positions_BT = torch.arange(rows)[:, None], torch.zeros(rows, 1, dtype=torch.long)
    with torch.inference_mode():
        found_BT = model.greedy_tokens(tokens_BT, positions_BT, SlotAttention(cache, positions_BT), vocab_size)
        logits_BTV = model.logits(model(tokens_BT, positions_BT, SlotAttention(cache, positions_BT)))[..., :vocab_size]
    assert found_BT is not None
    assert found_BT.flatten().tolist() == [row.index(max(row)) for row in logits_BTV[:, 0].tolist()]


@pytest.mark.parametrize("wrong", ["token", "position"])
@pytest.mark.parametrize("watched", [False, True])
def test_no_such_token_or_position_is_an_error(watched: bool, wrong: str) -> None:
    """In one call and layer by layer."""
    model = tiny_model(dtype="float32", **{**SHAPE, "head_dim": 32})
    cache = KvCache(model.config, 1, 8, torch.device("cpu"), torch.float32)
    watch = (lambda layer, q_BNTH, positions_BT: None) if watched else None
    token = model.config.vocab_size if wrong == "token" else 1
    position = model.config.max_context_len if wrong == "position" else 1
    for sign in (1, -1):
        tokens_BT, positions_BT = (torch.tensor([[x]]) for x in ((token, position) if sign > 0 else (-1, -1)))
        with torch.inference_mode(), pytest.raises(IndexError):
            model(tokens_BT, positions_BT, SlotAttention(cache, torch.tensor([[3]]), query_hook=watch))


@pytest.mark.parametrize("watched", [False, True])
def test_positions_may_be_of_a_shorter_type(watched: bool) -> None:
    model = tiny_model(dtype="float32", **{**SHAPE, "head_dim": 32})
    watch = (lambda layer, q_BNTH, positions_BT: None) if watched else None
    found = []
    for dtype in (torch.int32, torch.int64):
        cache = KvCache(model.config, 1, 8, torch.device("cpu"), torch.float32)
        with torch.inference_mode():
            attend = SlotAttention(cache, torch.arange(3)[None], query_hook=watch)
            found.append(model(torch.tensor([[1, 2, 3]]), torch.arange(3, dtype=dtype)[None], attend))
    assert torch.equal(*found)


def test_nothing_is_done_with_no_tokens() -> None:
    model = tiny_model(dtype="float32", **SHAPE)
    with torch.inference_mode():
        assert model(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0, dtype=torch.long)).shape == (1, 0, SHAPE["d_model"])


def test_a_damaged_key_is_not_passed_over() -> None:
    """A score that is no number makes the answer none: that is how damaged weights are noticed."""
    model = tiny_model(dtype="float32", **{**SHAPE, "head_dim": 32})
    cache = KvCache(model.config, 1, 80, torch.device("cpu"), torch.float32)
    cache.k_LBKSH[0, 0, 0, 20, 5] = float("nan")
    for length in (1, 5):
        with torch.inference_mode():
            positions_BT = torch.arange(70, 70 + length)[None]
            out_BTD = model(torch.ones(1, length, dtype=torch.long), positions_BT, SlotAttention(cache, positions_BT))
        assert bool(out_BTD.isnan().any())
