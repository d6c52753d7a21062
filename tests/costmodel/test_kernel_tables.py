"""Kernel tables: reading synthetic tables, and recovering the laws that generated them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.calibration.kernel_fits import (
    CacheReuse,
    allreduce_table_s,
    attention_table_s,
    fit_allreduce,
    fit_attention,
    fit_gemm,
    fit_tables,
    gemm_table_s,
    halves,
    is_large,
)
from magicdec.costmodel.calibration.kernel_tables import SYSTEMS, System, read_allreduce, read_attention, read_gemm
from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.hardware.profile import EngineLaw, HardwareProfile
from magicdec.costmodel.kernels.attention import AttentionLaw, attention_s
from magicdec.costmodel.kernels.collectives import AllreduceLaw
from magicdec.costmodel.kernels.gemm import GemmLaw, gemm_s

NOT_CACHED = CacheReuse(kv_share=0.2, weight_share=0.02)
GEMM_TRUTH = GemmLaw(5e-6, 4e-6, 0.61, 0.72, 2.2, 64)
ATTENTION_TRUTH = AttentionLaw(
    launch_s=8e-6, memory_efficiency=0.83, sm_bytes_per_s=5e10, wave_s=5e-6, merge_s=4e-6, split_s=5e-7, sharpness=2.5
)
ALLREDUCE_TRUTH = AllreduceLaw(8e-6, 5e-7, 0.45, 0.7, 2.5, 0.5)


def grid(**axes: list[float]) -> dict[str, np.ndarray]:
    """Every combination of the axes, as columns."""
    return dict(zip(axes, (values.ravel() for values in np.meshgrid(*axes.values(), indexing="ij")), strict=True))


def gemm_columns(profile: HardwareProfile) -> dict[str, np.ndarray]:
    sizes = [1024.0, 2048.0, 4096.0, 8192.0, 16384.0]
    rows = [1.0, 2, 3, 5, 8, 16, 33, 64, 65, 100, 128, 200, 256, 513, 1024, 2048, 8192]
    columns = grid(m=rows, n=sizes, k=sizes)
    return {**columns, "seconds": gemm_table_s(columns, GEMM_TRUTH, NOT_CACHED, profile)}


def attention_columns(profile: HardwareProfile) -> dict[str, np.ndarray]:
    batches, lengths = [1.0, 2, 4, 7, 16, 32, 64, 128], [17.0, 129, 513, 2049, 8193, 32_769]
    columns = grid(batch=batches, heads=[32.0], kv_heads=[1.0, 2, 4, 8, 32], length=lengths)
    columns["window"] = np.zeros_like(columns["batch"])
    return {**columns, "seconds": attention_table_s(columns, ATTENTION_TRUTH, NOT_CACHED, profile)}


def allreduce_columns(profile: HardwareProfile) -> dict[str, np.ndarray]:
    columns = grid(payload=[2.0**power for power in range(10, 27)], gpus=[2.0, 4.0, 8.0])
    return {**columns, "seconds": allreduce_table_s(columns, ALLREDUCE_TRUTH, profile)}


@pytest.fixture(scope="module")
def h100() -> HardwareProfile:
    return resolve_profile("h100-sxm")


# What the laws say of a benchmark's rows


def test_rows_of_a_table_that_nothing_caches_take_what_the_law_says(h100: HardwareProfile) -> None:
    rates: dict[str, Any] = {"flop_per_s": 9.89e14, "bytes_per_s": 3.35e12}
    m, n, k = 128.0, 8192.0, 16384.0
    columns = {"m": np.array([m]), "n": np.array([n]), "k": np.array([k])}
    moved = 2 * (n * k + m * (n + k))
    served = float(sum(gemm_s(GEMM_TRUTH, rows=m, inputs=k, flop=2 * m * n * k, moved_bytes=moved, **rates)))
    assert gemm_table_s(columns, GEMM_TRUTH, NOT_CACHED, h100) == pytest.approx([served], rel=1e-6)
    b, heads, kv_heads, length = 16.0, 32.0, 8.0, 32_769.0
    asked = {"batch": b, "heads": heads, "kv_heads": kv_heads, "length": length}
    read, queries = b * kv_heads * length * 512, b * heads * 512
    work: dict[str, Any] = {"flop": 4 * b * heads * 128 * length, "kv_bytes": read, "query_bytes": queries, "num_sms": 132}
    call = attention_s(ATTENTION_TRUTH, sequences=b, kv_heads=kv_heads, query_rows=4, group=4, read_len=length, **work, **rates)
    priced = attention_table_s({name: np.array([value]) for name, value in asked.items()}, ATTENTION_TRUTH, NOT_CACHED, h100)
    assert priced == pytest.approx([float(sum(call))], rel=1e-6)


def test_what_stays_in_the_cache_is_read_faster(h100: HardwareProfile) -> None:
    small = {"m": np.array([1.0]), "n": np.array([1024.0]), "k": np.array([1024.0])}
    cached = replace(NOT_CACHED, weight_share=1.2)
    assert gemm_table_s(small, GEMM_TRUTH, cached, h100) < gemm_table_s(small, GEMM_TRUTH, NOT_CACHED, h100)
    asked = {"batch": 4.0, "heads": 32.0, "kv_heads": 8.0, "length": 2049.0}
    columns = {name: np.array([value]) for name, value in asked.items()}
    law, cached = replace(ATTENTION_TRUTH, sharpness=12.0), CacheReuse(kv_share=1.6, kv_ratio=5.0, sm_ratio=5.0)
    launch_s = law.launch_s
    hit, missed = (float(attention_table_s(columns, law, reuse, h100)[0]) - launch_s for reuse in (cached, NOT_CACHED))
    assert missed == pytest.approx(5 * hit, rel=0.4)
    cold = replace(cached, kv_share=0.2)
    assert float(attention_table_s(columns, law, cold, h100)[0]) - launch_s == pytest.approx(missed, rel=1e-6)


# Fits


def test_halves_share_no_row_and_leave_none_out(h100: HardwareProfile) -> None:
    columns = gemm_columns(h100)
    one, other = halves(columns)
    together = [tuple(row) for half in (one, other) for row in zip(*half.values(), strict=True)]
    assert sorted(together) == sorted(zip(*columns.values(), strict=True))
    assert 0.4 < len(one["m"]) / len(columns["m"]) < 0.6
    assert halves(columns)[0]["m"].tolist() == one["m"].tolist()


def close(found: Any, truth: Any, names: tuple[str, ...], rel: float) -> None:
    for name in names:
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=rel), name


def test_the_products_that_made_a_table_are_found_again(h100: HardwareProfile) -> None:
    law, fit = fit_gemm(gemm_columns(h100), "made up", h100)
    assert law.tile_rows == 64
    close(law, GEMM_TRUTH, ("launch_s", "depth_s", "compute_efficiency", "memory_efficiency", "sharpness"), 0.05)
    assert (fit.part, fit.data) == ("gemm", "made up")
    assert fit.mean_error < 0.005
    assert 150 < fit.num_points < 280
    assert set(fit.fitted) == {"launch_s", "depth_s", "compute_efficiency", "memory_efficiency", "sharpness", "tile_rows"}
    assert 0.02 <= fit.benchmark["weight_share"] < 0.1


def test_the_attention_that_made_a_table_is_found_again(h100: HardwareProfile) -> None:
    law, fit = fit_attention(attention_columns(h100), "made up", h100, System("h100-sxm", "", "", ""))
    close(law, ATTENTION_TRUTH, ("launch_s", "memory_efficiency", "sm_bytes_per_s", "wave_s", "sharpness"), 0.1)
    assert (fit.part, fit.data) == ("attention", "made up")
    assert fit.mean_error < 0.01
    assert fit.large_mean_error is not None
    assert fit.large_mean_error < 0.01
    assert set(fit.benchmark) == {"kv_share", "kv_ratio", "sm_ratio"}


def test_facts_of_a_kernel_are_not_fitted(h100: HardwareProfile) -> None:
    system = System("h100-sxm", "", "", "", kernel={"merge_s": 0.0, "tile_rows": 16}, free=("transpose_s",))
    law, fit = fit_attention(attention_columns(h100), "made up", h100, system)
    assert (law.merge_s, law.tile_rows) == (0.0, 16)
    assert "merge_s" not in fit.fitted
    assert "transpose_s" in fit.fitted


def test_rows_with_a_window_are_not_fitted(h100: HardwareProfile) -> None:
    columns = attention_columns(h100)
    windowed = {name: np.concatenate([values, values]) for name, values in columns.items()}
    half = len(columns["batch"])
    windowed["window"][half:] = 128.0
    windowed["seconds"][half:] *= 100
    law, fit = fit_attention(windowed, "made up", h100, System("h100-sxm", "", "", ""))
    assert fit.mean_error < 0.01
    assert law.memory_efficiency == pytest.approx(0.83, rel=0.05)


def test_the_allreduces_that_made_a_table_are_found_again(h100: HardwareProfile) -> None:
    law, fit = fit_allreduce(allreduce_columns(h100), "aiconfigurator-core, h100_sxm, vllm 1, custom_allreduce_perf", h100)
    names = ("latency_s", "peer_latency_s", "one_shot_efficiency", "two_shot_efficiency", "two_shot_latency_factor")
    close(law, ALLREDUCE_TRUTH, names, 0.1)
    assert law.one_shot
    assert law.shared_bytes_per_s == AllreduceLaw().shared_bytes_per_s, "the links of an H100 are its own"
    assert fit.num_points == 51
    assert fit.mean_error < 0.02


def test_nccl_has_no_one_shot_and_a_host_without_links_shares_what_it_carries() -> None:
    l40s = resolve_profile("l40s")
    truth = AllreduceLaw(2e-5, 5e-6, 0.5, 0.6, 1.0, 0.8, shared_bytes_per_s=6e10, one_shot=False)
    columns = grid(payload=[2.0**power for power in range(10, 27)], gpus=[2.0, 4.0, 8.0])
    columns["seconds"] = allreduce_table_s(columns, truth, l40s)
    law, fit = fit_allreduce(columns, "aiconfigurator-core, l40s, nccl 2.27.3, nccl_perf", l40s)
    assert not law.one_shot
    assert law.two_shot_latency_factor == 1
    close(law, truth, ("latency_s", "peer_latency_s", "shared_bytes_per_s"), 0.15)
    assert fit.mean_error < 0.03


def test_large_reads_are_those_that_decide_in_serving() -> None:
    columns = {"batch": np.array([1.0, 1, 16, 16]), "kv_heads": np.full(4, 8.0), "length": np.array([8193.0, 32_769, 4097, 4095])}
    assert is_large(columns).tolist() == [False, True, True, False]


# Files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: tables are read with it")
    return tmp_path


def write(folder: Path, path: str, columns: dict[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    file = folder / f"{path}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), file)


GEMMS = {
    "gemm_dtype": ["bfloat16", "fp8", "bfloat16", "bfloat16", "bfloat16", "bfloat16"],
    "m": [1, 1, 8193, 8192, 16, 16],
    "n": [1024, 1024, 1024, 4096, 1023, 1024],
    "k": [2048, 2048, 2048, 1024, 2048, 1023],
    "latency": [0.5, 0.1, 9.0, 2.0, 3.0, 3.0],
}
CALLS = {
    "attn_dtype": ["bfloat16", "float16", "fp8", "bfloat16", "bfloat16", "bfloat16"],
    "kv_cache_dtype": ["bfloat16", "float16", "bfloat16", "fp8", "bfloat16", "bfloat16"],
    "head_dim": [128, 128, 128, 128, 64, 128],
    "batch_size": [1, 2, 4, 8, 16, 32],
    "num_heads": [32, 32, 32, 32, 32, 32],
    "num_key_value_heads": [8, 8, 8, 8, 8, 4],
    "step": [1023, 100, 1, 1, 1, 5000],
    "window_size": [0, 64, 0, 0, 0, 0],
    "latency": [0.5, 0.25, 1.0, 1.0, 1.0, 2.0],
    "kernel_source": ["flashinfer", "other", "flashinfer", "flashinfer", "flashinfer", "flashinfer"],
}
REDUCTIONS = {
    "op_name": ["all_reduce", "all_gather", "all_reduce", "all_reduce", "all_reduce", "all_reduce"],
    "message_size": [1024, 1024, 4096, 1024, 16, 2**26],
    "num_gpus": [8, 8, 2, 16, 4, 4],
    "latency": [0.01, 0.01, 0.02, 0.03, 0.04, 0.05],
}


def test_products_are_read_of_the_newest_version(folder: Path) -> None:
    write(folder, "h100_sxm/gemm/trtllm/0.9.0/gemm_perf", {name: values[:1] for name, values in GEMMS.items()})
    write(folder, "h100_sxm/gemm/trtllm/0.20.0/gemm_perf", GEMMS)
    write(folder, "h100_sxm/gemm/vllm/1.0.0/gemm_perf", {name: values[:1] for name, values in GEMMS.items()})
    columns, source = read_gemm(folder, "h100_sxm")
    assert source == "aiconfigurator-core, h100_sxm, trtllm 0.20.0, gemm_perf"
    assert {name: values.tolist() for name, values in columns.items()} == {
        "m": [1, 8192],
        "n": [1024, 4096],
        "k": [2048, 1024],
        "seconds": [0.0005, 0.002],
    }


@pytest.mark.parametrize("root", ["", "systems/data", "data"])
def test_tables_are_found_from_the_package_or_its_data(folder: Path, root: str) -> None:
    write(folder, f"{root}/h100_sxm/gemm/trtllm/1/gemm_perf".lstrip("/"), GEMMS)
    assert len(read_gemm(folder, "h100_sxm")[0]["m"]) == 2


def test_calls_of_attention_are_read(folder: Path) -> None:
    write(folder, "h100_sxm/attention/sglang/1/generation_attention_perf", CALLS)
    columns, _ = read_attention(folder, "h100_sxm")
    assert {name: values.tolist() for name, values in columns.items()} == {
        "batch": [1, 2, 32],
        "heads": [32, 32, 32],
        "kv_heads": [8, 8, 4],
        "length": [1024, 64, 5001],
        "window": [0, 64, 0],
        "seconds": [0.0005, 0.00025, 0.002],
    }


def test_of_a_table_that_mixes_kernels_one_is_read(folder: Path) -> None:
    assert SYSTEMS["l40s"].kernel_source == "flashinfer"
    write(folder, "l40s/attention/sglang/1/generation_attention_perf", CALLS)
    assert read_attention(folder, "l40s")[0]["batch"].tolist() == [1, 32]


def test_a_table_without_windows_has_none(folder: Path) -> None:
    write(folder, "h100_sxm/attention/sglang/1/generation_attention_perf", {k: v for k, v in CALLS.items() if k != "window_size"})
    assert read_attention(folder, "h100_sxm")[0]["length"].tolist() == [1024, 101, 5001]


def test_allreduces_are_read_in_bytes_and_only_as_graphs_run_them(folder: Path) -> None:
    graphs = ["vLLM_graph", "vLLM_graph", "vLLM_eager", "vLLM_graph", "vLLM_graph", "vLLM_graph"]
    write(folder, "h100_sxm/comm/vllm/1/custom_allreduce_perf", {**REDUCTIONS, "backend": graphs})
    columns, _ = read_allreduce(folder, "h100_sxm")
    assert {name: values.tolist() for name, values in columns.items()} == {"payload": [2048], "gpus": [8], "seconds": [1e-5]}
    write(folder, "h100_sxm/comm/vllm/2/custom_allreduce_perf", {**REDUCTIONS, "backend": ["vLLM_eager"] * 6})
    assert read_allreduce(folder, "h100_sxm")[0]["payload"].tolist() == [2048, 8192], "where there are no graphs, what there is"
    write(folder, "l40s/comm/nccl/1/nccl_perf", {**REDUCTIONS, "nccl_dtype": ["half", "half", "half", "half", "half", "int8"]})
    columns, _ = read_allreduce(folder, "l40s")
    assert columns["payload"].tolist() == [2048, 8192]


def test_missing_tables_and_unknown_systems_are_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"system: .*h100_sxm.*found 'h1000'"):
        read_gemm(folder, "h1000")
    with pytest.raises(InputError, match=r"folder: expected a folder with the tables of h100_sxm"):
        read_gemm(folder, "h100_sxm")
    (folder / "h100_sxm").mkdir()
    with pytest.raises(InputError, match=r"expected gemm_perf\.parquet in a folder for each version, found none"):
        read_gemm(folder, "h100_sxm")


def test_without_pyarrow_one_is_told_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install pyarrow"):
        read_gemm(tmp_path, "h100_sxm")


def write_products(folder: Path, path: str, columns: dict[str, Any]) -> None:
    rows = {"gemm_dtype": ["bfloat16"] * len(columns["m"]), **{k: columns[k] for k in "mnk"}, "latency": 1e3 * columns["seconds"]}
    write(folder, f"{path}/1/gemm_perf", rows)


def write_calls(folder: Path, path: str, columns: dict[str, Any]) -> None:
    facts = {"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "head_dim": 128, "window_size": 0}
    named = {"batch_size": "batch", "num_heads": "heads", "num_key_value_heads": "kv_heads"}
    rows = {
        **{name: [value] * len(columns["batch"]) for name, value in facts.items()},
        **{new: columns[old] for new, old in named.items()},
        "step": columns["length"] - 1,
        "latency": 1e3 * columns["seconds"],
    }
    write(folder, f"{path}/1/generation_attention_perf", rows)


def write_all(folder: Path, h100: HardwareProfile) -> None:
    """Write tables of an H100 generated from the laws above."""
    write_products(folder, "h100_sxm/gemm/trtllm", gemm_columns(h100))
    write_calls(folder, "h100_sxm/attention/sglang", attention_columns(h100))
    reductions = allreduce_columns(h100)
    rows = len(reductions["payload"])
    write(
        folder,
        "h100_sxm/comm/vllm/1/custom_allreduce_perf",
        {
            "op_name": ["all_reduce"] * rows,
            "message_size": reductions["payload"] / 2,
            "num_gpus": reductions["gpus"],
            "backend": ["vLLM_graph"] * rows,
            "latency": 1e3 * reductions["seconds"],
        },
    )


def test_a_profile_gets_the_kernels_of_its_tables_and_keeps_what_people_wrote(folder: Path, h100: HardwareProfile) -> None:
    write_all(folder, h100)
    fitted = fit_tables(folder, "h100_sxm", h100)
    assert fitted.calibration.gemm.tile_rows == 64
    assert fitted.calibration.attention.memory_efficiency == pytest.approx(0.83, rel=0.1)
    assert fitted.calibration.allreduce.two_shot_efficiency == pytest.approx(0.7, rel=0.1)
    assert fitted.calibration.engine == EngineLaw()
    assert [fit.part for fit in fitted.calibration.fits][:3] == ["gemm", "attention", "allreduce"]
    assert replace(fitted, calibration=h100.calibration) == h100


def test_a_system_without_a_table_of_allreduces_keeps_the_defaults(folder: Path) -> None:
    assert SYSTEMS["b60"].allreduce is None
    b60 = resolve_profile("arc-pro-b60")
    gemm, calls = gemm_columns(b60), attention_columns(b60)
    write_products(folder, "b60/gemm/vllm", gemm)
    write_calls(folder, "b60/attention/vllm", calls)
    fitted = fit_tables(folder, "b60", b60).calibration
    assert fitted.allreduce == AllreduceLaw()
    assert [fit.part for fit in fitted.fits] == ["gemm", "attention"]


def test_new_kernels_take_back_what_was_said_of_whole_passes(folder: Path, h100: HardwareProfile) -> None:
    write_all(folder, h100)
    assert h100.calibration.fit_of("engine") is not None
    assert fit_tables(folder, "h100_sxm", h100).calibration.fit_of("engine") is None


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_known_system_has_a_profile_and_possible_facts(system: str) -> None:
    known = SYSTEMS[system]
    profile = resolve_profile(known.profile)
    AttentionLaw(**known.kernel)
    assert profile.calibrated
    names = {fit.part: fit.data for fit in profile.calibration.fits}
    assert f", {system}, {known.gemm} " in names["gemm"]
    assert f", {system}, {known.attention} " in names["attention"]
    free = {*known.free} - {"sm_ratio"}
    assert all(hasattr(AttentionLaw(), name) for name in free)
    attention = profile.calibration.table_attention or profile.calibration.attention
    for name, value in known.kernel.items():
        assert getattr(attention, name) == value, name
