"""Forward passes return argmax tokens or logits; in C with rows split over threads or not."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor

from magicdec.costmodel.base.errors import InputError
from magicdec.executor.engine.model_runner import ModelRunner
from magicdec.executor.kernels import build as compiled
from magicdec.executor.kernels import cpu_bindings
from magicdec.executor.kv.attention import SlotAttention
from magicdec.executor.kv.cache import KvCache
from magicdec.executor.model.dtypes import cpu_execution
from magicdec.executor.model.transformer import Transformer

CPU = torch.device("cpu")
SHAPE = {"d_model": 48, "head_dim": 32, "d_ff": 80, "vocab_size": 43, "dtype": "float32"}
needs_compiler = pytest.mark.skipif(compiled.kernels() is None, reason="needs a C compiler")


def noisy_cache(model: Transformer, rows: int, capacity: int = 90) -> KvCache:
    cache = KvCache(model.config, rows, capacity, CPU, model.dtype)
    generator = torch.Generator().manual_seed(rows)
    for name in ("k_LBKSH", "v_LBKSH"):
        getattr(cache, name).copy_(torch.randn(cache.k_LBKSH.shape, generator=generator))
    return cache


def tokens_and_positions(model: Transformer, starts: list[int], length: int) -> tuple[Tensor, Tensor]:
    tokens_BT = torch.randint(model.config.vocab_size, (len(starts), length), generator=torch.Generator().manual_seed(1))
    return tokens_BT, torch.tensor(starts)[:, None] + torch.arange(length)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (2, 3), (16, 1), (40, 1), (6, 7), (3, 16)])
def test_the_greedy_tokens_are_the_argmax_of_the_logits(rows: int, length: int, even: bool, dtype: str) -> None:
    """Few and many tokens; rows of equal and unequal length; weights of 32 and 16 bits, and the torch fallback."""
    model = tiny_model(**{**SHAPE, "dtype": "float64"})
    if dtype != "float64":
        narrow = Transformer(cpu_execution(model.config.with_dtype(dtype), kernels=compiled.kernels() is not None))
        narrow.load_state_dict(model.state_dict())
        model = narrow.eval().requires_grad_(False)
    starts = [50] * rows if even else [(17 * row) % 60 for row in range(rows)]
    tokens_BT, positions_BT = tokens_and_positions(model, starts, length)
    with torch.inference_mode():
        caches = noisy_cache(model, rows), noisy_cache(model, rows)
        asked, others = (ModelRunner(model)(tokens_BT, positions_BT, SlotAttention(cache, positions_BT)) for cache in caches)
        found_BT, logits_BTV = asked.greedy(), others.logits()
    assert found_BT.shape == (rows, length)
    assert len(found_BT.unique()) > 1 or rows * length == 1
    assert torch.equal(found_BT, logits_BTV.argmax(-1))
    assert torch.equal(caches[0].k_LBKSH, caches[1].k_LBKSH)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Set the number of threads for the duration of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(
    "starts", [[60] * 40, [(37 * row) % 80 for row in range(33)], [0] * 15 + [80]], ids=["even", "ragged", "one long"]
)
def test_rows_are_the_same_whether_threads_share_products_or_rows(
    starts: list[int], window: int | None, threads: Callable[[int], None]
) -> None:
    """Threads have rows of their own where contexts are even, and share products elsewhere; repeats must not change a bit."""
    model = tiny_model(**SHAPE)
    tokens_BT, positions_BT = tokens_and_positions(model, starts, 4)
    found = {}
    for count in (1, 2, 3):
        threads(count)
        for _ in range(20):
            with torch.inference_mode():
                cache = noisy_cache(model, len(starts))
                again = model(tokens_BT, positions_BT, SlotAttention(cache, positions_BT, window))
            assert torch.equal(found.setdefault(count, again), again)
    for count in (2, 3):
        torch.testing.assert_close(found[count], found[1], atol=1e-4, rtol=1e-4)


@needs_compiler
def test_threads_take_rows_of_their_own_where_reading_all_weights_costs_little() -> None:
    def groups(
        rows: int, length: int = 1, *, threads: int = 2, bits: int = 16, d_ff: int = 64, last: int = 0, window: int = 0
    ) -> int:
        """Of rows of `length` tokens that see one slot, the last row `last` more; weights have so many bits."""
        library = compiled.kernels()
        assert library is not None
        shape = {"d_model": 64, "num_heads": 4, "num_kv_heads": 4, "head_dim": 16, "d_ff": d_ff}
        layer = cpu_bindings.LayerStruct(type={32: 0, 16: 1}[bits], **shape)
        slots_BT = torch.zeros(rows, length, dtype=torch.int64)
        slots_BT[-1] = last
        one = cpu_bindings.PassStruct(B=rows, T=length, slots=slots_BT.data_ptr(), window=window)
        found: int = library.num_groups(ctypes.byref(layer), ctypes.byref(one), threads)
        return found

    assert groups(16) == groups(4, 4) == groups(17) == 2
    assert groups(24, threads=3) == 3
    assert groups(14) == groups(16, threads=3) == 1, "products of so few tokens are as fast as weights are read"
    assert groups(3, 9) == 1, "one thread would have twice as many products as the other"
    assert groups(16, last=200) == groups(16, last=9_000, window=200) == 2
    assert groups(16, last=9_000) == 1, "one thread would have a longer context to read"
    assert groups(16, bits=32) == 1
    assert groups(32, bits=32) == 2
    assert groups(1, 64) == 1
    assert groups(16, d_ff=6_000) == 1, "the caches do not keep so large a layer"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_only_ids_of_the_vocabulary_are_answered(dtype: str) -> None:
    """A draft model may have more or fewer ids than the target; the difference is padding."""
    model = tiny_model(**{**SHAPE, "dtype": dtype})
    tokens_BT, positions_BT = tokens_and_positions(model, [50] * 20, 3)
    for vocab_size in (5, 43, 50):
        with torch.inference_mode():
            asked = ModelRunner(model, vocab_size)(tokens_BT, positions_BT, SlotAttention(noisy_cache(model, 20), positions_BT))
            found_BT, logits_BTV = asked.greedy(), asked.logits()
        assert logits_BTV.shape == (20, 3, vocab_size)
        assert torch.equal(found_BT, logits_BTV.argmax(-1))
        assert int(found_BT.max()) < min(vocab_size, 43)
        assert bool((logits_BTV[..., 43:] == float("-inf")).all())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_token_of_each_row_may_be_asked_about(dtype: str) -> None:
    model = tiny_model(**{**SHAPE, "dtype": dtype})
    last_B = torch.tensor([0, 2, 1])
    tokens_BT, positions_BT = tokens_and_positions(model, [20, 30, 40], 3)
    with torch.inference_mode():
        attend = SlotAttention(noisy_cache(model, 3), positions_BT)
        every, some = (ModelRunner(model)(tokens_BT, positions_BT, attend, last) for last in (None, last_B))
        assert torch.equal(some.greedy(), every.greedy()[range(3), last_B])
        assert torch.equal(some.logits().argmax(-1), every.logits()[range(3), last_B].argmax(-1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ask", ["greedy", "logits"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_damaged_weights_are_noticed(wrong: float, ask: str, dtype: str) -> None:
    model = tiny_model(**{**SHAPE, "dtype": dtype, "name": "broken"})
    model.lm_head.weight[42, 3] = wrong
    tokens_BT, positions_BT = tokens_and_positions(model, [20], 1)
    with torch.inference_mode(), pytest.raises(InputError, match=r"broken.*finite logits.*damaged"):
        getattr(ModelRunner(model)(tokens_BT, positions_BT, SlotAttention(noisy_cache(model, 1), positions_BT)), ask)()
