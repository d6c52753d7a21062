"""Files of measurements as they come: read by the names of their columns, priced, and set beside what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from magicdec.cli.group import main
from magicdec.field.accuracy import file_accuracy, read_measurements
from magicdec.field.columns import said_by_name, tokens_per_round

SWEEP = """model,gpu,num_gpus,split,engine,quant,context_len,gamma,p_min,tok_s_overall,acceptance_low,acceptance_high,acceptance
Qwen3.8-27B,rtx-3090,1,,llama.cpp,Q4_K_M,131072,0,,41.6,,,
Qwen3.8-27B,rtx-3090,1,,llama.cpp,Q4_K_M,131072,1,,58.0,0.68,0.94,
Qwen3.8-27B,rtx-3090,1,,llama.cpp,Q4_K_M,131072,2,,66.0,,,0.72
Qwen3.8-27B,rtx-3090,1,,llama.cpp,Q4_K_M,131072,3,,64.0,,,0.64
Qwen3.8-27B,abacus,1,,llama.cpp,Q4_K_M,131072,3,,64.0,,,0.64
"""
STEPS = """model,gpu,engine,graph,num_reqs,query_len,context_len,median_forward_ms,source
Qwen3-1.7B,h100-80gb,vllm 0.28.0 FA3,cuda_graph,16,1,4096,4.42,here, and there
Qwen3-1.7B,h100-80gb,vllm 0.28.0 FA3,cuda_graph,16,4,4096,4.60,here
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    file = tmp_path / "sweep.csv"
    file.write_text(SWEEP)
    return file


def test_a_sweep_is_priced_with_ratios_rates_and_the_best_draft_length(sweep: Path) -> None:
    columns, priced = read_measurements(str(sweep))
    assert columns[0] == "model"
    plain, *speculative, unknown = priced
    assert [one.quantity for one in plain.compared] == ["plain rate"]
    assert {one.quantity for one in speculative[1].compared} == {"speculative rate", "speedup"}
    assert "a shipped profile" in unknown.error
    ratio = next(one for one in speculative[1].compared if one.quantity == "speedup")
    assert ratio.measured == pytest.approx(66.0 / 41.6)
    assert float(speculative[1].columns["predicted_mean_acceptance_length"]) == pytest.approx(1 + 2 * 0.72)
    lines = {line.quantity: line for line in file_accuracy(str(sweep), priced)}
    assert lines["speedup"].priced == 3
    assert lines["speedup"].rows == 5
    assert lines["speedup"].median_error < 0.15
    assert lines["best gamma"].worst_error <= 1
    assert {one.columns["predicted_optimal_gamma"] for one in priced[:-1]} <= {"2", "3"}
    assert lines["speedup"].engine == "llama.cpp"


def test_a_timer_of_the_layers_alone_is_compared_with_the_layers_alone(tmp_path: Path) -> None:
    file = tmp_path / "steps.csv"
    file.write_text(STEPS)
    _, priced = read_measurements(str(file))
    assert [one.error for one in priced] == ["", ""]
    assert all(abs(one.compared[0].error) < 0.06 and one.compared[0].quantity == "forward pass" for one in priced)
    assert priced[0].cells["source"] == "here, and there", "a comma that nobody quoted belongs to the last column"


def test_the_commands_name_the_columns_and_errors(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    result = CliRunner().invoke(main, ["predict", "--scenarios", str(sweep), "-o", str(out)])
    assert result.exit_code == 0, result.output
    header = out.read_text().splitlines()[0].split(",")
    assert {"predicted_tok_s", "predicted_speedup", "predicted_speedup_low", "predicted_speedup_high"} <= set(header)
    assert {"predicted_optimal_gamma", "error", "tok_s_overall"} <= set(header)
    again = CliRunner().invoke(main, ["predict", "--scenarios", str(out), "-o", str(tmp_path / "again.csv")])
    assert again.exit_code == 0
    assert (tmp_path / "again.csv").read_text() == out.read_text(), "predictions of an earlier run are left out"


@pytest.mark.slow
def test_validate_has_the_errors_of_files_in_its_document(sweep: Path) -> None:
    result = CliRunner().invoke(main, ["validate", str(sweep), "--json"])
    files = json.loads(result.stdout)["files"]
    assert {"file", "quantity", "rows", "priced", "median_error", "p90_error", "worst_error", "covered"} <= set(files[0])


def test_acceptance_is_read_however_it_is_written() -> None:
    assert tokens_per_round({"accept_length": "2.5"}, 3) == (2.5, None)
    assert tokens_per_round({"alpha": "0.8"}, 3) == (None, 0.8)
    assert tokens_per_round({"acceptance_note": "acceptance 0.59"}, 2) == (pytest.approx(2.18), None)
    assert tokens_per_round({"draft": "replay (all accepted)"}, 12) == (13.0, None)
    assert said_by_name("/data/specbundle_sglang_more.csv") == {"hardware": "h200-sxm", "engine": "sglang"}


@pytest.mark.filterwarnings("ignore:.*is taken for")
def test_one_command_for_a_card_names_n_the_rate_the_memory_and_the_line_to_paste() -> None:
    command = (
        "plan --model qwen3.8-27b --quant Q4_K_M --hardware rtx-3090 --engine llama.cpp --draft mtp --context-len 64k --task code"
    )
    result = CliRunner().invoke(main, command.split())
    assert result.exit_code == 0, result.output
    gamma = re.search(r"MTP draft,\s+gamma (\d+)", result.output)
    assert gamma is not None
    assert 3 <= int(gamma[1]) <= 6, "as measured; acceptance beyond six draft tokens was not, and must not win"
    for words in ("rate: ", "memory: ", "tokens of context fit", "paste: llama-server", "--spec-draft-n-max"):
        assert words in result.output


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--draft eagle3 --tree 8,4", "more tokens to verify"),
        ("--draft self --tree 4,8", "leave it out"),
        ("--draft ngram --match-share 1.5", "from 0 to 1"),
        ("--draft self --match-share 0.3", "leave it out"),
    ],
)
def test_shapes_that_no_draft_has_are_one_sentence(given: str, words: str) -> None:
    where = "predict --model llama-3.1-8b --hardware h200-sxm --batch-size 8 --context-len 8k --gamma 5 --acceptance-rate 0.7 "
    result = CliRunner().invoke(main, (where + given).split())
    assert result.exit_code == 2
    assert words in result.output


def test_an_engine_that_cannot_run_a_draft_names_one_that_can() -> None:
    command = "predict --model qwen3-8b --hardware h100-sxm --engine sglang --batch-size 1 --context-len 8k --draft self"
    result = CliRunner().invoke(main, command.split())
    assert result.exit_code == 2
    assert "vllm-vegas" in result.output


def test_under_load_a_token_waits_for_the_prompts_of_the_other_requests(tmp_path: Path) -> None:
    head = "model,gpu,engine,tp,isl,osl,concurrency,median_tpot_s,median_ttft_s\n"
    rows = "".join(
        f"{model},h200-sxm,vllm,tp8,{prompt},128,{running},0.05,1.0\n"
        for model, prompt, running in (("GLM-5-FP8", 4096, 1), ("GLM-5-FP8", 4096, 16), ("Qwen3.5-397B-A17B", 4096, 16))
    )
    (tmp_path / "loop.csv").write_text(head.replace("tp,", "parallel,") + rows)
    alone, loaded, recurrent = read_measurements(str(tmp_path / "loop.csv"))[1]
    assert [one.quantity for one in alone.compared + loaded.compared] == ["TPOT under load"] * 2
    assert loaded.compared[0].predicted > 2 * alone.compared[0].predicted
    assert "recurrent" in recurrent.error
    assert not recurrent.compared


PUBLISHED = Path(__file__).parent / "samples" / "field"
MADE_UP = 0.5  # figures of one digit
FORMS = {  # what is set beside predictions in each published form, and how far off at most, at the median
    "eagle3_vllm_h100": ({"plain rate", "speedup", "best gamma"}, MADE_UP),
    "hf_dense_decode_by_context_a6000": ({"step"}, MADE_UP),
    "inferencex_golden_acceptance_length": ({"tokens per round"}, 0.3),
    "inferencex_token_position_decode": ({"TPOT under load"}, 0.35),
    "llamacpp_dgx_spark_batched_bench": ({"step"}, 0.15),
    "llamacpp_rtx3090_by_context": ({"plain rate", "speculative rate", "speedup"}, MADE_UP),
    "llamacpp_rtx3090_round_cost_by_width": ({"step", "round cost", "speedup", "best gamma"}, MADE_UP),
    "llmservingsim_chunk_attention": ({"kernel"}, 0.25),
    "llmservingsim_decode_attention": ({"kernel"}, 0.25),
    "llmservingsim_dense_layers": ({"kernel"}, 0.35),
    "longctx_selfspec_a6000_vllm_fork": ({"plain rate", "speculative rate", "speedup"}, MADE_UP),
    "longctx_verify_ratio_a6000": ({"verification ratio"}, MADE_UP),
    "mtp_by_context": ({"plain rate", "speculative rate", "speedup"}, MADE_UP),
    "mtp_nmax_sweeps": ({"plain rate", "speculative rate", "speedup", "best gamma"}, MADE_UP),
    "serving_points": ({"plain rate", "speculative rate", "speedup", "step"}, MADE_UP),
    "small_batch_amortisation": ({"tokens at once"}, 0.6),
    "specbundle_sglang_eagle3_throughput": ({"plain rate", "speculative rate", "speedup", "best gamma"}, 0.4),
    "specdecodebench_acceptance_by_gamma": ({"tokens per round"}, MADE_UP),
    "specdecodebench_survival_by_position": ({"accepted so far"}, MADE_UP),
    "verify_attention_kernels_flashinfer": (set(), 0.0),
    "vllm028_h100_decode_steps_qwen3_1p7b": ({"forward pass"}, MADE_UP),
    "vllm028_h100_verify_steps_minicpm5_2b": ({"forward pass"}, MADE_UP),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_published_form_is_read_and_priced_or_refused_with_a_reason(name: str) -> None:
    quantities, most = FORMS[name]
    file = PUBLISHED / f"{name}.csv"
    _, priced = read_measurements(str(file))
    assert {one.quantity for row in priced for one in row.compared} == quantities
    assert all(row.compared or row.error or row.columns for row in priced)
    for line in file_accuracy(str(file), priced):
        if line.priced and line.quantity != "best gamma":
            assert line.median_error <= most, line.quantity
