"""Request traces as they are published: Azure, Mooncake, BurstGPT, conversations, results of benchmarks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.plans import trace_file
from magicdec.costmodel.plans.trace import RequestTrace
from magicdec.costmodel.plans.trace_columns import KNOWN, recognise
from magicdec.costmodel.plans.trace_file import load_trace

AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2225670,879,55
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.017335+00:00,2399,6
2024-05-10 00:00:01.009930+00:00,76,15
"""
MOONCAKE = """{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46, 47]}
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,0,417,API log
120,GPT-4,417,276,693,API log
"""
VLLM = {"date": "20261127", "backend": "vllm", "completed": 3, "input_lens": [2048, 2047, 5], "output_lens": [64, 64, 0]}
SGLANG = {"backend": "sglang", "dataset_name": "random", "completed": 2, "input_lens": [100, 200], "output_lens": [10, 20]}
TALK = [
    {"id": "a", "conversations": [{"from": "human", "value": "x" * 41}, {"from": "gpt", "value": "y" * 400}]},
    {"id": "b", "conversations": [{"from": "human", "value": "alone"}]},
    {"id": "c", "conversations": [{"role": "user", "content": "z" * 8}, {"role": "assistant", "content": "w" * 7}]},
]


def read(folder: Path, text: str, columns: dict[str, str] | None = None) -> RequestTrace:
    file = folder / "trace"
    file.write_text(text, encoding="utf-8")
    return load_trace(str(file), columns)


@pytest.mark.parametrize(
    ("text", "prompts", "outputs", "arrival"),
    [
        (AZURE_2023, [374, 396, 879], [44, 109, 55], [0, 4.314579, 4.541977]),
        (AZURE_2024, [2162, 2399, 76], [5, 6, 15], [0, 0.007405, 1.0]),
        (MOONCAKE, [6955, 6472], [52, 26], [0, 3.053]),
        (BURSTGPT, [472, 1087, 417], [18, 230, 276], [0, 40, 115]),
        (json.dumps(VLLM), [2048, 2047], [64, 64], None),
        (json.dumps(VLLM | {"start_times": [7.5, 8.0, 8.5]}), [2048, 2047], [64, 64], [0, 0.5]),
        (json.dumps(VLLM, indent=1), [2048, 2047], [64, 64], None),
        (json.dumps(SGLANG) + "\n" + json.dumps(SGLANG) + "\n", [100, 200, 100, 200], [10, 20, 10, 20], None),
        (json.dumps(TALK), [11, 2], [100, 2], None),
        ("\n".join(map(json.dumps, TALK)), [11, 2], [100, 2], None),
        ('{"usage": {"prompt_tokens": 7, "completion_tokens": 8}, "created_at": 1700000000000}\n', [7], [8], [0]),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,5,6\n1.5,7,8\n", [5, 7], [6, 8], [0, 1]),
        ("arrival_time;input_len;output_len\n1;5;6\n", [5], [6], [0]),
        ("timestamp_ms\tInput Tokens\tOutput Tokens\n1000\t5\t6\n3500\t7\t8\n", [5, 7], [6, 8], [0, 2.5]),
        ("prompt_len,output_len,arrival_s\n5,6,10\n7,8,9\n", [5, 7], [6, 8], [1, 0]),
        ("timestamp,prompt_len,output_len\n1700000000000000,5,6\n1700000000500000,7,8\n", [5, 7], [6, 8], [0, 0.5]),
    ],
    ids=[
        *["azure 2023", "azure 2024", "mooncake", "burstgpt", "vllm", "vllm with times", "vllm indented", "sglang"],
        *["sharegpt", "sharegpt lines", "usage", "vidur", "semicolons", "tabs", "own", "microseconds since 1970"],
    ],
)
def test_published_traces_are_read_by_their_columns(
    tmp_path: Path, text: str, prompts: list[int], outputs: list[int], arrival: list[float] | None
) -> None:
    trace = read(tmp_path, text)
    assert np.array_equal(trace.prompt_lens, prompts)
    assert np.array_equal(trace.output_lens, outputs)
    if arrival is None:
        assert trace.arrival_s is None
    else:
        assert trace.arrival_s == pytest.approx(arrival, abs=1e-6)


def test_requests_that_failed_are_left_out_and_counted(tmp_path: Path) -> None:
    assert read(tmp_path, BURSTGPT).notes == ("1 requests without a prompt or without output are left out",)
    with pytest.raises(InputError, match="output_len: expected a positive whole number, found '0'"):
        read(tmp_path, "prompt_len,output_len\n5,0\n")


def test_texts_are_counted_and_the_trace_says_how(tmp_path: Path) -> None:
    assert any("4 characters a token" in note for note in read(tmp_path, json.dumps(TALK)).notes)


def test_unknown_columns_can_be_named(tmp_path: Path) -> None:
    text = "id,n_in,n_out,when\na,5,6,1000\nb,7,8,2500\n"
    with pytest.raises(InputError, match=r"prompt_len, output_len: expected a column of this name .*, found id, n_in, n_out, when"):
        read(tmp_path, text)
    trace = read(tmp_path, text, {"context_len": "n_in", "output_len": "n_out", "arrival_ms": "when"})
    assert trace == RequestTrace([5, 7], [6, 8], [0, 1.5])
    nested = read(tmp_path, '{"a": {"in": 5}, "out": 6}\n', {"prompt_len": "a.in", "output_len": "out"})
    assert nested == RequestTrace([5], [6])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"prompt_len": "nothing"}, "nothing: expected a column of this name, found TIMESTAMP"),
        ({"length": "ContextTokens"}, "trace_columns: length: expected prompt_len, output_len, arrival_s or arrival_ms"),
    ],
)
def test_wrong_names_are_refused(tmp_path: Path, columns: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(tmp_path, AZURE_2023, columns)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps({"total_input_tokens": 5, "completed": 1}), "--save-detailed"),
        (json.dumps(VLLM | {"output_lens": [1]}), "lists of equal length"),
        (json.dumps(VLLM | {"output_lens": [1, 2, "x"]}), "output_lens: expected a whole number, found 'x'"),
        ("[]", "one request"),
        ('[{"input_len": 5, "output_len": 5}, 7]', "entry 2: expected a request as JSON object, found int"),
        ('{"input_length": -1, "output_length": 5}\n', "input_length: expected a whole number, found -1"),
        ("ContextTokens,GeneratedTokens\n0,0\n", "none with output"),
        ("ContextTokens,GeneratedTokens,ContextTokens\n1,1,1\n", "every column once"),
        ("[1", "JSON"),
    ],
)
def test_a_trace_without_lengths_is_refused_in_one_message(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert len(caught.value.problems) == 1
    assert words in str(caught.value)


@pytest.mark.parametrize("when", ["soon", "", "nan", "2024-13-40", "NaT"])
def test_times_that_are_none_are_not_used_and_the_trace_says_so(tmp_path: Path, when: str) -> None:
    trace = read(tmp_path, f"timestamp,prompt_len,output_len\n{when},5,6\n")
    assert trace.arrival_s is None
    assert any("timestamp are not understood" in note for note in trace.notes)


@given(st.sampled_from(KNOWN["prompt_len"]), st.sampled_from(KNOWN["output_len"]), st.sampled_from([*KNOWN["arrival_s"], ""]))
def test_known_names_are_recognised_in_any_company(prompt: str, output: str, arrival: str) -> None:
    found = recognise(["id", output.upper(), arrival, prompt, "model"], {}, "file")
    assert (found.prompt, found.output, found.arrival) == (prompt, output.upper(), arrival or None)


# Large files.


def large(folder: Path, rows: int) -> tuple[Path, RequestTrace]:
    """A file in the manner of Azure's, and what it says."""
    chance = np.random.default_rng(5)
    prompts, outputs = chance.integers(1, 100_000, rows), chance.integers(1, 2000, rows)
    times = np.datetime64("2024-05-10T00:00:00") + np.arange(rows).astype("timedelta64[ms]")
    file = folder / "large.csv"
    lines = [f"{when}+00:00,{prompt},{output}\n" for when, prompt, output in zip(times, prompts, outputs, strict=True)]
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(lines), encoding="utf-8")
    return file, RequestTrace(prompts, outputs, np.arange(rows) / 1000)


def test_a_large_file_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_file, "BLOCK_ROWS", 1000)
    file, expected = large(tmp_path, 30_500)
    start = time.process_time()
    trace = load_trace(str(file))
    assert time.process_time() - start < 3
    assert np.array_equal(trace.prompt_lens, expected.prompt_lens)
    assert trace.arrival_s == pytest.approx(np.asarray(expected.arrival_s))
    with file.open("a") as out:
        out.write("2024-05-10,7,x\n")
    with pytest.raises(InputError, match=r"large.csv:30502: GeneratedTokens: expected a whole number, found 'x'"):
        load_trace(str(file))


def test_a_very_large_file_is_sampled_evenly_and_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, whole = large(tmp_path, 200_000)
    monkeypatch.setattr(trace_file, "SAMPLE_BYTES", 2**20)
    trace = load_trace(str(file))
    assert trace == load_trace(str(file))
    assert len(trace) == pytest.approx(trace.share * len(whole), rel=0.05)
    assert trace.typical == pytest.approx(whole.typical, rel=0.02)
    assert trace.requests_per_s == pytest.approx(1000, rel=0.05)
    assert np.max(np.asarray(trace.arrival_s)) > 195, "up to the end of the file"
    assert any("MiB are read" in note for note in trace.notes)


# What stands for many requests in a plan.


@given(st.integers(1, 3000), st.integers(0, 2**32 - 1), st.sampled_from([1, 7, 256]))
def test_groups_keep_shares_and_means(count: int, seed: int, most: int) -> None:
    chance = np.random.default_rng(seed)
    trace = RequestTrace(chance.integers(1, 100_000, count), chance.integers(1, 3000, count))
    contexts, shares = trace.groups(most)
    assert len(contexts) <= max(most, 1) or len(trace) <= most
    assert shares.sum() == pytest.approx(1)
    assert contexts @ shares == pytest.approx(trace.context_lens @ trace.weights)
    assert np.all((contexts >= trace.context_lens.min() - 1e-6) & (contexts <= trace.context_lens.max() + 1e-6))
    for budget in (64, 512, 20_000):
        exact = np.minimum(trace.context_lens, budget) @ trace.weights
        assert np.minimum(contexts, budget) @ shares == pytest.approx(exact, rel=0.02 if most == 256 else 5)
    assert trace.prompt_groups(most).mean() == pytest.approx(np.mean(trace.prompt_lens), rel=0.01 if count % most == 0 else 1)


@pytest.mark.parametrize(
    "values",
    [
        {"prompt_lens": (), "output_lens": ()},
        {"prompt_lens": (5,), "output_lens": (0,)},
        {"prompt_lens": (5,), "output_lens": (1.5,)},
        {"prompt_lens": (5, 6), "output_lens": (1,)},
        {"prompt_lens": ("a",), "output_lens": (1,)},
        {"prompt_lens": (5,), "output_lens": (1,), "arrival_s": (1.0, 2.0)},
        {"prompt_lens": (5,), "output_lens": (1,), "arrival_s": (float("nan"),)},
    ],
)
def test_a_trace_holds_positive_whole_numbers_alone(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="trace"):
        RequestTrace(**values)


def test_traces_with_equal_requests_are_equal() -> None:
    assert RequestTrace((1, 2), (3, 4)) == RequestTrace(np.array([1, 2]), [3, 4])
    assert RequestTrace((1, 2), (3, 4)) != RequestTrace((1, 2), (3, 5))
    assert RequestTrace((1, 2), (3, 4), (0, 1)) != RequestTrace((1, 2), (3, 4))
    assert RequestTrace((1, 2), (3, 4), (5, 6)) == RequestTrace((1, 2), (3, 4), (0, 1)), "times count from the first"
    assert RequestTrace((1,), (3,)) != "a trace"
