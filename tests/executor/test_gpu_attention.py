"""The GPU's attention kernel: its numbers in Triton's interpreter, compiled for GPUs that are not there, and on one that is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magicdec.executor.kv.attention import visible

triton = pytest.importorskip("triton", reason="needs Triton")
gpu_attention = pytest.importorskip("magicdec.executor.kernels.triton_attention")

SHARED_BYTES = 99 * 1024  # that a program may have on the smallest GPUs: compute capability 8.6 and 8.9
TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
GROUPS = [(4, 2), (8, 1), (3, 3)]


def softmax_attention(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, positions_BT: Tensor, window: int | None) -> Tensor:
    group = q_BNTH.shape[1] // k_BKSH.shape[1]
    seen_BTS = visible(positions_BT, torch.arange(k_BKSH.shape[2], device=k_BKSH.device), window)
    k_BNSH, v_BNSH = (x.double().repeat_interleave(group, 1) for x in (k_BKSH, v_BKSH))
    scores_BNTS = q_BNTH.double() @ k_BNSH.transpose(2, 3) * q_BNTH.shape[3] ** -0.5
    return scores_BNTS.masked_fill(~seen_BTS[:, None], float("-inf")).softmax(-1) @ v_BNSH


def check(
    dtype: str, heads: tuple[int, int], lengths: list[int], query_len: int, width: int, window: int | None,
    device: str = "cpu", capacity: int = 640,
) -> None:  # fmt: skip
    """Rows of some lengths in a cache of random numbers, the slots beyond their lengths included."""
    generator = torch.Generator().manual_seed(query_len)
    (num_heads, kv_heads), batch = heads, len(lengths)
    kind = getattr(torch, dtype)
    cache_2BKSH = torch.randn(2, batch, kv_heads, capacity + 7, width, generator=generator).to(device, kind)
    q_BNTH = 2 * torch.randn(batch, num_heads, query_len, width, generator=generator).to(device, kind)
    positions_BT = (torch.tensor(lengths)[:, None] + torch.arange(query_len)).to(device)
    k_BKSH, v_BKSH = cache_2BKSH[:, :, :, :capacity]
    found = gpu_attention.attend(q_BNTH, k_BKSH, v_BKSH, positions_BT, window)
    wanted = softmax_attention(q_BNTH, k_BKSH, v_BKSH, positions_BT, window)
    assert found.shape == q_BNTH.shape
    assert found.dtype == kind
    torch.testing.assert_close(found.double(), wanted, atol=TOLERANCE[dtype] * float(wanted.abs().max()), rtol=0)


def interpreted_cases() -> None:
    """Run where Triton was imported to interpret; its bfloat16 then stores whole numbers, so that type is left to GPUs."""
    for sms in (1, 40):
        gpu_attention._num_sms = lambda device, found=sms: found
        for dtype, window in (("float32", None), ("float32", 1), ("float16", 70)):
            for heads, query_len in (((4, 2), 1), ((8, 1), 3), ((3, 3), 6), ((8, 2), 9))[: 4 if sms > 1 else 1]:
                check(dtype, heads, [0, 63, 64, 500], query_len, 32, window)


@pytest.mark.slow
def test_each_query_sees_its_own_slots_and_no_others() -> None:
    here = Path(__file__)
    command = [sys.executable, "-c", f"import {here.stem}; {here.stem}.interpreted_cases(); print('all right')"]
    paths = os.pathsep.join([str(here.parent), str(here.parents[2])])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout == "all right\n"


def test_slots_are_split_so_that_all_sms_work_but_not_too_finely() -> None:
    assert gpu_attention.num_splits(pairs=8, slots=32768, sms=132) == 32
    assert gpu_attention.num_splits(pairs=192, slots=32768, sms=132) == 2
    assert gpu_attention.num_splits(pairs=264, slots=32768, sms=132) == 1
    assert gpu_attention.num_splits(pairs=8, slots=512, sms=132) == 2
    assert gpu_attention.num_splits(pairs=1, slots=3, sms=132) == 1


def test_a_layout_the_kernel_cannot_read_is_refused() -> None:
    q, k = torch.zeros(1, 2, 1, 16), torch.zeros(1, 2, 9, 16)
    for wrong_k, wrong_v in ((k.transpose(1, 2).contiguous().transpose(1, 2), k), (k[..., ::2], k[..., ::2])):
        with pytest.raises(ValueError, match="equal strides"):
            gpu_attention.attend(q, wrong_k, wrong_v, torch.tensor([[4]]), None)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 89, 90, 100])
@pytest.mark.parametrize(
    ("dtype", "query_len", "width"), [("bf16", 1, 128), ("bf16", 5, 128), ("bf16", 5, 64), ("fp16", 4, 256), ("fp32", 5, 128)]
)
def test_the_kernel_compiles_for_gpus_and_fits_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capability: int, dtype: str, query_len: int, width: int
) -> None:
    """Llama-3.1-8B's heads and others, cut as they are when launched."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tuned, rows = gpu_attention.tuning(4 * query_len, width, 4 if dtype == "fp32" else 2), 4 * query_len
    options = {name: tuned.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    constants = {"T": query_len, "R": rows, "H": width, "SPLITS": 4, **tuned}
    kinds = {"q_ptr": f"*{dtype}", "k_ptr": f"*{dtype}", "v_ptr": f"*{dtype}", "positions_ptr": "*i64", "scale": "fp32", "K": "i32"}
    kinds |= {"stride_b": "i64", "stride_k": "i64", "window": "i32"}
    whole = compile_for(capability, gpu_attention._partial, kinds, constants, options)
    assert whole.metadata.shared <= SHARED_BYTES
    assert "cp.async" in whole.asm["ptx"], "blocks should be on their way while others are computed with"
    compile_for(
        capability, gpu_attention._merge, {"out_ptr": f"*{dtype}"}, {"R": rows, "H": width, "SPLITS": 4}, {"enable_fp_fusion": True}
    )


def compile_for(capability: int, kernel: Any, kinds: dict[str, str], constants: dict[str, int], options: dict[str, int]) -> Any:
    """Parts are float32; pointers and strides are multiples of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {name: kinds.get(name, "constexpr" if name in constants else "*fp32") for name in kernel.arg_names}
    aligned = [place for place, (name, kind) in enumerate(kinds.items()) if kind[0] == "*" or "stride" in name]
    source = ASTSource(kernel, kinds, constants, {(place,): [["tt.divisibility", 16]] for place in aligned})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")
@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("query_len", [1, 5])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_on_a_gpu_each_query_sees_its_own_slots_and_no_others(dtype: str, query_len: int, window: int | None) -> None:
    for heads in GROUPS:
        check(dtype, heads, [0, 63, 64, 500, 30000], query_len, 128, window, "cuda", 32768)
