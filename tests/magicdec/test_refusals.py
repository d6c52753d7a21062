"""Bad input on the command line: one message that names it, by its flag, and exit code 2."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from command_line import WHERE, call, main, refused

POINT = [*WHERE, "--batch-size", "64", "--context-len", "32k"]
PLAN, PREDICT = ["plan", *POINT], ["predict", *POINT]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan", *WHERE], "--batch-size"),
        (["plan", *WHERE, "--batch-size", "8"], "--context-len"),
        (["plan", *WHERE, "--context-len", "8k"], "--batch-size"),
        (["plan", "--model", "llama-3.1-8b", "--batch-size", "8", "--context-len", "8k"], "--hardware"),
        (["plan", *WHERE, "--batch-size", "8", "--trace", "none.csv"], "none.csv"),
        (["plan", *WHERE, "--batch-size", "8,,16", "--context-len", "8k"], "--batch-size"),
        (["plan", *WHERE, "--batch-size", "0", "--context-len", "8k"], "--batch-size"),
        (["plan", *WHERE, "--batch-size", "1.5", "--context-len", "8k"], "'1.5'"),
        ([*PLAN, "--gamma", "0"], "--gamma"),
        ([*PLAN, "--gamma", "65"], "64 draft tokens per round"),
        ([*PLAN, "--kv-budget", "0"], "--kv-budget"),
        ([*PLAN, "--kv-policy", "best"], "streaming_llm"),
        ([*PLAN, "--kv-policy", "full"], "--kv-policy"),
        ([*PLAN, "--draft", "gpt-9"], "--draft"),
        ([*PLAN, "--draft", "model"], "--draft"),
        ([*PLAN, "--draft", "tinyllama-1.1b"], "vocabulary"),
        ([*PLAN, "--objective", "money"], "'latency', 'throughput', 'cost'"),
        ([*PLAN, "--max-tpot", "0"], "--max-tpot"),
        ([*PLAN, "--max-tpot", "1us"], "at least"),
        ([*PLAN, "--max-tpot", "15"], "15ms or 15s?"),
        ([*PLAN, "--batch-size", "128-8"], "8-128?"),
        ([*PLAN, "--batch-size", "8-"], "both ends"),
        ([*PLAN, "--context-len", "2k-64k"], "--sweep"),
        ([*PLAN, "--max-tpot", "5 parsecs"], "5 parsecs"),
        ([*PLAN, "--gpu-price", "-1"], "--gpu-price"),
        ([*PLAN, "--gpu-price", "nan"], "--gpu-price"),
        ([*PLAN, "--gpu-price", "inf"], "--gpu-price"),
        ([*PLAN, "--acceptance-rate", "1.5"], "--acceptance-rate"),
        ([*PLAN, "--acceptance-rate", "nan"], "--acceptance-rate"),
        ([*PLAN, "--acceptance-rate", "0.9,"], "--acceptance-rate"),
        ([*PLAN, "--acceptance-rate", "0.9,high"], "--acceptance-rate"),
        ([*PLAN, "--weight-dtype", "int3"], "--weight-dtype"),
        ([*PLAN, "--kv-dtype", "bf16"], "--kv-dtype"),
        ([*PLAN, "--draft-kv-dtype", "bf16"], "--draft-kv-dtype"),
        ([*PLAN, "--verify-kernel", "magic"], "shared_kv_splitkv"),
        ([*PLAN, "--tensor-parallel", "3"], "--tensor-parallel"),
        ([*PLAN, "--json", "-o", "-"], "--json"),
        ([*PLAN, "--draft", "ngram", "--kv-policy", "snapkv"], "--kv-policy"),
        ([*PLAN, "--draft", "ngram", "--kv-budget", "512"], "--kv-budget"),
        (["plan", *WHERE, "--batch-size", "4096", "--context-len", "100k"], "memory of one GPU"),
        (["predict", *WHERE[2:], "--batch-size", "64", "--context-len", "32k"], "--model"),
        ([*PREDICT, "--model", "lama-3.1-8b"], "Llama-3.1-8B"),
        ([*PREDICT, "--hardware", "h1000-sxm"], "h100-sxm"),
        ([*PREDICT, "--batch-size", "0"], "--batch-size"),
        ([*PREDICT, "--gamma", "0"], "--gamma"),
        ([*PREDICT, "--kv-budget", "0"], "--kv-budget"),
        ([*PREDICT, "--kv-budget", "lots"], "'lots'"),
        ([*PREDICT, "--kv-policy", "best"], "streaming_llm"),
        ([*PREDICT, "--kv-policy", "full"], "sparse"),
        ([*PREDICT, "--draft", "gpt-9"], "gpt-9"),
        ([*PREDICT, "--tensor-parallel", "3"], "--tensor-parallel"),
        ([*PREDICT, "--verify-kernel", "magic"], "shared_kv_splitkv"),
        ([*PREDICT, "--json", "-o", "-"], "--json"),
        ([*PREDICT, "--draft", "ngram", "--kv-policy", "snapkv"], "--kv-policy"),
        ([*PREDICT, "--draft", "eagle3", "--kv-budget", "512"], "--kv-budget"),
        ([*PREDICT, "--draft", "llama-3.2-1b", "--kv-policy", "full", "--kv-budget", "512"], "--kv-budget"),
        ([*PREDICT, "--draft", "none", "--gamma", "3"], "--gamma"),
        ([*PREDICT, "--draft", "none", "--mean-acceptance-length", "3"], "--mean-acceptance-length"),
        ([*PREDICT, "--draft", "mtp"], "eagle3, ngram or a smaller model: Llama-3.1-8B has no MTP layers"),
        ([*PREDICT, "--draft", "slf"], "did you mean self?"),
        ([*PREDICT, "--draft", "ngarm"], "did you mean ngram?"),
        ([*PREDICT, "--kv-policy", "snapvk"], "did you mean snapkv?"),
        ([*PREDICT, "--num-gpus", "3"], "--num-gpus: expected a divisor of the 32 query heads"),
        ([*PREDICT, "--draft", "eagle3", "--draft-kv-dtype", "int4"], "--draft-kv-dtype"),
        ([*PREDICT, "--draft", "self", "--draft-tensor-parallel", "2"], "--draft-tensor-parallel"),
        ([*PREDICT, "--draft", "llama-3.2-1b", "--draft-weight-dtype", "int8"], "--draft-weight-dtype"),
        ([*PREDICT, "--gamma", "2", "--mean-acceptance-length", "2", "--acceptance-rate", "0.5"], "--mean-acceptance-length"),
        ([*PREDICT, "--mean-acceptance-length", "2"], "--gamma"),
        ([*PREDICT, "--gamma", "2", "--mean-acceptance-length", "3.5"], "gamma + 1"),
        ([*PREDICT, "--gamma", "2", "--mean-acceptance-length", "nan"], "--mean-acceptance-length"),
        ([*PREDICT, "--gamma", "100"], "64 draft tokens per round"),
        (["regimes", *WHERE, "--speedup", "nan"], "--speedup"),
        (["regimes", *WHERE, "--kv-policy", "full"], "--kv-policy"),
        (["regimes", *WHERE, "--small-draft", "tinyllama-1.1b"], "vocabulary"),
        (["calibrate", "--from-published", "l4"], "a100-sxm-80gb, h100-sxm, l40"),
        (["calibrate", "--system", "h100_sxm"], "--from-aiconfigurator"),
        (["calibrate", "--from-aiconfigurator", "nowhere", "--system", "h9"], "--system"),
        (["calibrate", "--from-aiconfigurator", "nowhere", "--from-published", "h100"], "--from-published"),
        (["report", "-o", "report", "--draft", "none"], "--draft"),
        (["report", "-o", "report", "--kv-budget", "0"], "--kv-budget"),
        (["report", "-o", "report", "--batch-sizes", "1,none"], "--batch-sizes"),
        (["report", "-o", "report", "--ridge", "h1000"], "--ridge"),
        (["calibrate", "--from-published", "h1000"], "--from-published"),
        (["calibrate", "--from-aiconfigurator", "x", "--system", "h100_sxm", "--profile", "h1000"], "--profile"),
        (["report", "-o", "report", "missing.yaml"], "missing.yaml"),
    ],
    ids=lambda value: " ".join(word for word in value if word not in POINT) if isinstance(value, list) else "",
)
def test_bad_input_is_one_message_that_names_it(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(*arguments)
    assert expected in message
    command = main.get_command(click.Context(main), arguments[0])
    assert command is not None
    parameters = {parameter.name for parameter in command.params}
    assert not parameters & set(re.findall(r"`(\w+)`", message)), "options are called by their flags"
    assert not parameters & set(re.findall(r"^error: (\w+):", message)), "options are called by their flags"
    assert not list(tmp_path.iterdir())


def test_a_bad_profile_file_names_file_key_expected_and_found(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    shipped = (Path(__file__).parents[2] / "hardware_profiles" / "h100-sxm.yaml").read_text()
    profile.write_text(shipped.replace("memory_bytes: 8.0e+10", "memory_bytes: 8e10\n  colour: green"))
    message = refused(*PREDICT, "--hardware", profile, problems=2)
    assert f"{profile}: peak.memory_bytes: expected a valid number (YAML reads" in message
    assert "found '8e10' (str)" in message
    assert "peak.colour: expected no such key" in message


def test_a_report_on_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    assert "found an empty file" in refused("report", tmp_path / "none.jsonl", "-o", tmp_path / "page")


def test_a_file_that_is_replaced_is_named(tmp_path: Path) -> None:
    file = tmp_path / "point.json"
    assert "replaced" not in call(*PREDICT, "-o", file).stderr
    assert f"replaced {file}" in call(*PREDICT, "-o", file).stderr


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "a file that can be written" in refused(*PREDICT, "-o", tmp_path / "file" / "below.json")
    assert "a file that can be written" in refused(*PLAN, "-o", tmp_path / "file" / "below.yaml")


@pytest.mark.parametrize("arguments", [["x" * 5000], ["predict", "--" + "x" * 5000], ["predict", "x" * 5000]])
def test_usage_errors_stay_short_however_long_the_argument(arguments: list[str]) -> None:
    assert len(refused(*arguments)) < 2000
