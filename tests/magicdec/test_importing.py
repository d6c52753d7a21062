"""Results of other tools: what is recognised, what is read from it, what is refused."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from command_line import call, refused

import magicdec
from magicdec.importing.llama_cpp import name_of_file
from magicdec.importing.measured import Measured, conditional
from magicdec.importing.recognise import read_results

SAMPLES = Path(__file__).parent / "samples"


def read(name: str) -> list[Measured]:
    return read_results(str(SAMPLES / name))


def given(tmp_path: Path, name: str, text: str) -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_batched_bench_gives_a_step_for_each_batch_size() -> None:
    found = read("llama_batched_bench.jsonl")
    assert [(one.batch_size, one.context_len) for one in found] == [(1, 2064), (4, 2064), (16, 2064)]
    assert found[0].step_s == pytest.approx(0.021579 / 32)
    assert {one.engine for one in found} == {"llama.cpp"}


def test_llama_bench_gives_generation_at_its_depth_and_leaves_prompts_out() -> None:
    found = read("llama_bench.json")
    assert [one.context_len for one in found] == [32, 2080]
    assert found[1].step_s == pytest.approx(44225978e-9 / 64, rel=0.05)  # the median beside the mean
    assert (found[0].model, found[0].quant, found[0].gpu) == ("ref", "f32", "AMD EPYC")


def test_vllm_serve_gives_tpot_and_acceptance_given_that_earlier_tokens_were_accepted() -> None:
    (found,) = read("vllm_bench_serve.json")
    assert (found.engine, found.batch_size, found.gamma) == ("vllm", 16, 5)
    assert found.tpot_s == pytest.approx(0.13077, rel=1e-3)
    assert found.tokens_per_round == pytest.approx(2.2303, rel=1e-4)
    assert found.acceptance_by_position[:2] == pytest.approx((0.48688, 0.39067 / 0.48688), rel=1e-4)


def test_a_vllm_log_gives_steps_without_prompts_by_running_requests() -> None:
    found = read("vllm.log")
    assert (found[-1].batch_size, found[-1].samples, found[-1].step_s) == (16, 2, pytest.approx(0.046235))
    assert all(2000 < (one.context_len or 0) < 2100 for one in found)
    assert {(one.draft, one.gamma) for one in found} == {("ngram", 4)}


def test_acceptance_of_a_vllm_log_is_weighted_by_drafts(tmp_path: Path) -> None:
    line = (
        "INFO [metrics.py:96] SpecDecoding metrics: Mean acceptance length: {}, Accepted throughput: 4.37 tokens/s, "
        "Drafted throughput: 4.92 tokens/s, Accepted: {} tokens, Drafted: {} tokens, Per-position acceptance rate: {}\n"
    )
    text = line.format(2.5, 15, 20, "0.900, 0.600") + line.format(1.5, 15, 60, "0.400, 0.100")
    (found,) = read_results(given(tmp_path, "server.log", text))
    assert found.tokens_per_round == pytest.approx((10 * 2.5 + 30 * 1.5) / 40)
    assert found.acceptance_by_position == pytest.approx((0.525, 0.225 / 0.525))
    assert found.samples == 40


def test_timings_of_a_llama_server_are_read(tmp_path: Path) -> None:
    text = (
        "slot print_timing: prompt eval time =     100.00 ms /  1000 tokens (    0.10 ms per token, 10000.00 tokens per second)\n"
        "slot print_timing:        eval time =    2000.00 ms /   200 tokens (   10.00 ms per token,   100.00 tokens per second)\n"
        "slot print_timing: draft acceptance = 0.54671 (  158 accepted /   289 generated), mean acceptance length =  2.63, "
        "acceptance rate per position = (0.80, 0.60)\n"
    )
    (found,) = read_results(given(tmp_path, "llama.log", text))
    assert (found.tpot_s, found.context_len, found.tokens_per_round) == (0.01, 1100, 2.63)
    assert found.acceptance_by_position == pytest.approx((0.8, 0.75))


def test_metrics_of_a_server_are_read(tmp_path: Path) -> None:
    text = """# HELP vllm:spec_decode_num_drafts_total Number of drafts.
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 100.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 150.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 90.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 60.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 4.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 8.0
"""
    (found,) = read_results(given(tmp_path, "metrics.txt", text))
    assert (found.model, found.tokens_per_round, found.gamma, found.ttft_s) == ("m", 2.5, 2, 0.5)
    assert found.acceptance_by_position == pytest.approx((0.9, 60 / 90))


def test_sglang_results_are_read(tmp_path: Path) -> None:
    batch = {"run_name": "r", "batch_size": 4, "input_len": 1024, "output_len": 512, "prefill_latency": 3.5}
    one_batch = [{**batch, "median_decode_latency": 0.0189}, {**batch, "output_len": 1}]
    (found,) = read_results(given(tmp_path, "one.jsonl", "\n".join(map(json.dumps, one_batch)) + "\n"))
    assert (found.batch_size, found.context_len, found.step_s) == (4, 1280, 0.0189)
    serving = {"completed": 10, "total_input_tokens": 10000, "total_output_tokens": 2000, "max_concurrency": 8}
    serving |= {"accept_length": 2.8, "median_tpot_ms": 9.0, "median_ttft_ms": 120.0}
    (found,) = read_results(given(tmp_path, "serving.jsonl", json.dumps(serving)))
    assert (found.engine, found.batch_size, found.context_len, found.tokens_per_round) == ("sglang", 8, 1100, 2.8)


@pytest.mark.parametrize(
    ("name", "model", "quant"),
    [
        ("/models/Qwen3.8-27B-UD-Q4_K_XL-00001-of-00002.gguf", "Qwen3.8-27B", "UD-Q4_K_XL"),
        ("C:\\m\\gpt-oss-20b-mxfp4.gguf", "gpt-oss-20b", "mxfp4"),
        ("plain.gguf", "plain", None),
    ],
)
def test_the_name_of_a_gguf_file_tells_model_and_type(name: str, model: str, quant: str | None) -> None:
    assert name_of_file(name) == (model, quant)


def test_rates_end_where_nothing_was_accepted() -> None:
    assert conditional([0.5, 0.25, 0.0, 0.0]) == (0.5, 0.5)


def test_the_command_writes_what_is_named_and_found(tmp_path: Path) -> None:
    out = tmp_path / "mine.csv"
    result = call("import", SAMPLES / "llama_batched_bench.jsonl", "--model", "qwen3-8b", "--hardware", "h100-sxm", "-o", out)
    assert result.exit_code == 0, result.output
    assert "3 of llama-batched-bench" in result.output
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [row["model"] for row in rows] == ["qwen3-8b"] * 3
    assert float(rows[0]["step_s"]) == pytest.approx(0.021579 / 32, rel=1e-5)
    assert "note" not in result.output
    document = json.loads(call("import", SAMPLES / "vllm_bench_serve.json", "--json").stdout)
    assert document["measurements"][0]["tokens_per_round"] == pytest.approx(2.2303, rel=1e-4)


def test_what_no_tool_wrote_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    out, bad = tmp_path / "mine.csv", given(tmp_path, "other.json", '{"hello": 1}')
    assert "llama-batched-bench" in refused("import", SAMPLES / "llama_bench.json", bad, "-o", out)
    assert not out.exists()
    assert "vllm bench serve" in refused("import", SAMPLES / "vllm_bench_latency.json")
    missing = given(tmp_path, "serve.json", '{"request_throughput": 1, "completed": 3, "total_input_tokens": 9}')
    assert "total_output_tokens" in refused("import", missing)
    for text in ("", "[1]", "nothing here\n", '{"t_tg": "x", "pl": 1, "pp": 2, "tg": 3}', '{"n_gen": 3'):
        refused("import", given(tmp_path, "broken.json", text))


def test_the_function_is_the_command(tmp_path: Path) -> None:
    found = magicdec.import_results(SAMPLES / "llama_bench.json", quant="f16")
    assert [row["quant"] for row in found.rows()] == ["f16", "f16"]
    assert "2 measurements" in repr(found)
