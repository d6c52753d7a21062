"""Workloads and request traces: validation, reading files, and the cost of mixed lengths."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.planning.search import Candidate, candidates, rank
from magicdec.costmodel.plans.trace import RequestTrace
from magicdec.costmodel.plans.trace_file import load_trace
from magicdec.costmodel.plans.workload import Workload
from magicdec.costmodel.speculation.acceptance import published_curves
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import Evaluation, evaluate_grid

STREAMING, CURVES = Draft("self", "streaming_llm"), published_curves()
HEADER = "prompt_len,output_len\n"


@pytest.fixture(scope="module")
def deployment(llama: TransformerConfig, a100: HardwareProfile) -> Deployment:
    return Deployment(llama, a100, 8, 8)


# One batch.


def test_a_workload_knows_its_contexts() -> None:
    workload = Workload(8, 1000, 64)
    assert workload.mean_context_len == 1032
    assert workload.max_context_len == 1064


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", None])
@pytest.mark.parametrize("name", ["batch_size", "context_len", "output_len"])
def test_a_workload_takes_positive_whole_numbers(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"workload: {name}: expected a positive whole number"):
        Workload(**{"batch_size": 1, "context_len": 1, "output_len": 1, name: value})


def test_all_mistakes_of_a_workload_are_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Workload(0, 0, 0)
    assert [problem.key for problem in caught.value.problems] == ["batch_size", "context_len", "output_len"]


# Reading traces.


def written(folder: Path, text: str | bytes, name: str = "trace.csv") -> str:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


@pytest.mark.parametrize(
    "text",
    [
        HEADER + "1000,10\n2000,20\n",
        "prompt_len,output_len\r\n1000,10\r\n2000,20\r\n",
        "\ufeff" + HEADER + "1000,10\n2000,20",
        "id,output_len,prompt_len,model\na,10,1000,x\nb,20,2000,y\n",
        HEADER + "1000,10\n\n2000,20\n\n",
        HEADER + "1e3,10.0\n 2000 ,20\n",
        'id,prompt_len,output_len\n"a,\nb",1000,10\n"c",2000,20\n',
        '{"prompt_len": 1000, "output_len": 10}\n{"prompt_len": 2000, "output_len": 20}\n',
        '\n\n  {"prompt_len": 1000, "output_len": 10}\n\n{"output_len": 20.0, "prompt_len": "2000", "id": 7}',
        '\ufeff{"prompt_len": 1000, "output_len": 10}\r\n{"prompt_len": 2000, "output_len": 20}\r\n',
        '{"prompt_len": 1000, "output_len": 10, "text": "a\u2028b\x85c"}\n{"prompt_len": 2000, "output_len": 20}\n',
    ],
    ids=[
        *["plain", "crlf", "byte order mark", "columns", "blank lines", "numbers", "quoted"],
        *["json", "json blank lines", "json crlf", "json separators"],
    ],
)
def test_csv_and_json_lines_say_the_same(tmp_path: Path, text: str) -> None:
    assert load_trace(written(tmp_path, text)) == RequestTrace((1000, 2000), (10, 20))


@given(st.lists(st.tuples(st.integers(1, 2**40), st.integers(1, 100_000)), min_size=1, max_size=20))
@settings(max_examples=20)
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int]]) -> None:
    folder = tmp_path_factory.mktemp("traces")
    trace = RequestTrace(*(tuple(column) for column in zip(*rows, strict=True)))  # type: ignore[arg-type]
    as_csv = HEADER + "".join(f"{prompt},{output}\n" for prompt, output in rows)
    as_json = "".join(json.dumps({"prompt_len": prompt, "output_len": output}) + "\n" for prompt, output in rows)
    assert load_trace(written(folder, as_csv)) == load_trace(written(folder, as_json)) == trace


def refused(folder: Path, text: str | bytes) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_trace(written(folder, text))
    return [str(problem).replace(str(folder), "") for problem in caught.value.problems]


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "", "x", "nan", "inf", "-inf", "1e400", "1e30", "1,5", "0x10", "None", "true"])
def test_a_bad_length_is_named_with_its_line_and_column(tmp_path: Path, value: str) -> None:
    (message,) = refused(tmp_path, f'id,prompt_len,output_len\na,10,10\nb,"{value}",10\n')
    assert message == f"/trace.csv:3: prompt_len: expected a positive whole number, found {value!r}"


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "null", "NaN", "Infinity", "[]", '"x"', "{}", "true", "1e400"])
def test_a_bad_length_in_json_is_named_with_its_line_and_key(tmp_path: Path, value: str) -> None:
    (message,) = refused(tmp_path, f'{{"prompt_len": 5, "output_len": 5}}\n\n{{"prompt_len": 5, "output_len": {value}}}\n')
    assert message.startswith("/trace.csv:3: output_len: expected a positive whole number, found ")


def test_line_numbers_count_blank_lines_and_lines_within_quotes(tmp_path: Path) -> None:
    (message,) = refused(tmp_path, 'id,prompt_len,output_len\na,10,10\n\n"b\nb",10,10\n\nc,0,10\n')
    assert message.startswith("/trace.csv:7: prompt_len")


def test_all_bad_rows_are_named_up_to_twenty(tmp_path: Path) -> None:
    assert len(refused(tmp_path, HEADER + "0,0\n5,x\n")) == 3
    assert len(refused(tmp_path, HEADER + "0,0\n" * 1000)) == 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt,output_len\n1,1\n2,2\n", "prompt_len"),
        ("a,b\n1,1\n", "prompt_len, output_len"),
        ("1000,10\n2000,20\n", "prompt_len, output_len"),
    ],
)
def test_a_missing_column_is_said_once(tmp_path: Path, text: str, words: str) -> None:
    (message,) = refused(tmp_path, text)
    assert words in message


def test_a_row_that_is_too_short_lacks_its_value(tmp_path: Path) -> None:
    (message,) = refused(tmp_path, HEADER + "1000\n")
    assert message == "/trace.csv: line 2: expected 2 cells, one for each column, found 1 in 1000,..."


@pytest.mark.parametrize("text", ["", "\n\n", HEADER, "\ufeff"])
def test_a_trace_without_requests_is_refused(tmp_path: Path, text: str) -> None:
    (message,) = refused(tmp_path, text)
    assert message.startswith("/trace.csv: ")


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe\x00\x01",
        b"prompt_len,output_len\n1,\x00\n",
        b'{"prompt_len": 5, "output_len": 5}\n{"prompt_len": 5,',
        b'{"prompt_len": 5, "output_len": 5}\n[5, 5]\n',
        b'{"prompt_len": 5, "output_len": 5}\n7\n',
        b'{"a": ' + b"[" * 100_000,
    ],
    ids=["not utf-8", "nul", "broken json", "a list", "a number", "deep json"],
)
def test_what_is_no_trace_is_refused_and_never_a_traceback(tmp_path: Path, text: bytes) -> None:
    for message in refused(tmp_path, text):
        assert message.startswith("/trace.csv")


def test_a_trace_with_long_texts_is_read_or_refused_in_words(tmp_path: Path) -> None:
    """Prompt texts may exceed the default field size limit of Python's csv module."""
    with contextlib.suppress(InputError):
        assert load_trace(written(tmp_path, f"prompt_len,output_len,text\n5,6,{'x' * 200_000}\n")) == RequestTrace((5,), (6,))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(InputError, match="a readable trace"):
            load_trace(str(path))


# What a trace says.


def test_requests_are_met_in_proportion_to_how_long_they_stay() -> None:
    trace = RequestTrace((100, 1000), (10, 30))
    assert trace.weights.tolist() == [0.25, 0.75]
    assert trace.context_lens.tolist() == [105, 1015]
    assert trace.typical == (550, 20)


def test_the_typical_request_has_at_least_a_token() -> None:
    assert RequestTrace((1, 1, 1), (1, 1, 1)).typical == (1, 1)


# Mixed lengths in one batch.


def mixed(deployment: Deployment, draft: Draft, lengths: list[int], shares: list[float], **changes: Any) -> Evaluation:
    question: dict[str, Any] = {"batch_size": 64, "gamma": 3, "kv_budget": 512, "curves": CURVES}
    return evaluate_grid(deployment, draft, context_len=lengths, context_weights=shares, **{**question, **changes})


def alike(deployment: Deployment, draft: Draft, length: float, **changes: Any) -> Evaluation:
    question: dict[str, Any] = {"batch_size": 64, "gamma": 3, "kv_budget": 512, "curves": CURVES}
    return evaluate_grid(deployment, draft, context_len=length, **{**question, **changes})


def numbers(e: Evaluation) -> dict[str, Any]:
    r = e.round
    return {
        **{name: getattr(r, name) for name in ("target_step_s", "draft_step_s", "verify_step_s", "select_step_s", "first_draft_s")},
        **{"speedup": r.speedup, "low": e.speedup_low, "high": e.speedup_high, "length": r.mean_acceptance_length},
        "memory": e.memory.total_bytes,
        "rate": e.acceptance_rate,
    }


@pytest.mark.parametrize("draft", [STREAMING, Draft("self", "snapkv"), Draft("self", "quest"), Draft("mtp"), Draft()])
@pytest.mark.parametrize("length", [100, 512, 4000, 32_000])
def test_a_mixture_of_one_length_is_that_length(deployment: Deployment, draft: Draft, length: int) -> None:
    uniform = numbers(alike(deployment, draft, length, gamma=3 if draft.drafts else 0))
    for lengths, shares in (([length], [1.0]), ([length] * 3, [0.5, 0.25, 0.25])):
        for name, value in numbers(mixed(deployment, draft, lengths, shares, gamma=3 if draft.drafts else 0)).items():
            np.testing.assert_allclose(value, uniform[name], rtol=1e-12, err_msg=name)


@given(
    st.integers(1, 120_000),
    st.integers(1, 120_000),
    st.floats(0, 1),
    st.integers(1, 200),
    st.integers(1, 8),
    st.sampled_from([64, 512, 4096]),
    st.sampled_from(["a100-sxm-80gb", "h100-sxm"]),
)
def test_a_mixture_lies_between_its_parts(
    one: int, other: int, share: float, batch: int, gamma: int, budget: int, hardware: str
) -> None:
    deployment = Deployment(resolve_model("Llama-3.1-8B"), resolve_profile(hardware), 8, 8)
    shape: dict[str, Any] = {"batch_size": batch, "gamma": gamma, "kv_budget": budget}
    parts = [numbers(alike(deployment, STREAMING, length, **shape)) for length in (one, other)]
    whole = numbers(mixed(deployment, STREAMING, [one, other], [share, 1 - share], **shape))
    for name in ("target_step_s", "verify_step_s", "draft_step_s", "length", "rate", "memory"):
        low, high = sorted(float(part[name]) for part in parts)
        assert low * (1 - 1e-9) <= whole[name] <= high * (1 + 1e-9), name


@given(
    st.lists(st.integers(1, 128_000), min_size=1, max_size=5),
    st.integers(1, 200),
    st.integers(1, 20),
    st.sampled_from([64, 512, 4096]),
)
def test_the_interval_holds_the_prediction_of_any_mixture(lengths: list[int], batch: int, gamma: int, budget: int) -> None:
    deployment = Deployment(resolve_model("Llama-3.1-8B"), resolve_profile("a100-sxm-80gb"), 8, 8)
    shares = [1 / len(lengths)] * len(lengths)
    e = mixed(deployment, STREAMING, lengths, shares, batch_size=batch, gamma=gamma, kv_budget=budget)
    assert e.speedup_low * (1 + e.error) <= e.round.speedup * (1 + 1e-9)
    assert e.speedup_high >= e.round.speedup * (1 + e.error) * (1 - 1e-9)
    assert e.round.mean_acceptance_length <= (gamma + 1) * (1 + 1e-12)
    assert e.speedup_high <= (gamma + 1) * e.round.target_step_s / e.round.round_s * (1 + e.error) * (1 + 1e-9), "all accepted"


def test_short_contexts_are_read_whole_and_surely_accepted_in_a_mixture(deployment: Deployment) -> None:
    e = mixed(deployment, STREAMING, [100, 32_000], [0.5, 0.5])
    long = alike(deployment, STREAMING, 32_000)
    assert e.acceptance_rate == pytest.approx((1 + float(long.acceptance_rate)) / 2)
    assert e.round.mean_acceptance_length == pytest.approx((4 + float(long.round.mean_acceptance_length)) / 2)
    reads = alike(deployment, STREAMING, 16_050, kv_budget=(100 + 512) / 2)
    assert e.round.draft_step_s == pytest.approx(float(reads.round.draft_step_s), rel=1e-12)


def test_mixed_lengths_broadcast_with_the_other_axes(deployment: Deployment) -> None:
    batches, gammas, budgets = np.array([1, 64])[:, None, None], np.array([1, 2, 5])[:, None], np.array([64.0, 512.0])
    lengths, shares = [500, 8000, 60_000], [0.2, 0.5, 0.3]
    grid = mixed(deployment, STREAMING, lengths, shares, batch_size=batches, gamma=gammas, kv_budget=budgets)
    assert grid.round.speedup.shape == (2, 3, 2)
    for i, j, k in np.ndindex(2, 3, 2):
        where = {"batch_size": int(batches[i, 0, 0]), "gamma": int(gammas[j, 0]), "kv_budget": float(budgets[k])}
        one = mixed(deployment, STREAMING, lengths, shares, **where)
        np.testing.assert_allclose(grid.round.speedup[i, j, k], one.round.speedup, rtol=1e-12)
        np.testing.assert_allclose(grid.speedup_low[i, j, k], one.speedup_low, rtol=1e-12)


@pytest.mark.parametrize(
    ("lengths", "shares"),
    [([1000, 2000], [1.0, 1.0]), ([1000, 2000], [2.0, -1.0]), ([1000, 2000], [1.0]), (1000, 1.0), ([1000, 2000], [np.nan, 1.0])],
)
def test_shares_that_are_none_are_refused(deployment: Deployment, lengths: Any, shares: Any) -> None:
    with pytest.raises(InputError, match="context_weights"):
        mixed(deployment, STREAMING, lengths, shares)


def traced(deployment: Deployment, trace: RequestTrace, batch: int, **changes: Any) -> list[Candidate]:
    prompt, output = trace.typical
    return candidates(deployment, [STREAMING], Workload(batch, prompt, output), trace=trace, curves=CURVES, **changes)


def test_a_trace_of_equal_requests_is_planned_as_the_request(deployment: Deployment) -> None:
    workload = Workload(64, 32_000, 200)
    single = candidates(deployment, [STREAMING], workload, curves=CURVES)
    for one, other in zip(single, traced(deployment, RequestTrace((32_000,) * 3, (200,) * 3), 64), strict=True):
        assert one.strategy == other.strategy
        assert one.tpot_s == pytest.approx(other.tpot_s, rel=1e-12)
        assert one.memory_bytes == pytest.approx(other.memory_bytes, rel=1e-12)
        assert one.speedup_low == pytest.approx(other.speedup_low, rel=1e-12)
    assert rank(single)[0].strategy == rank(traced(deployment, RequestTrace((32_000,) * 3, (200,) * 3), 64))[0].strategy


def test_steps_of_a_trace_are_priced_at_what_the_batch_holds(deployment: Deployment) -> None:
    """A long request stays for 1000 steps, a short one for 10, so nearly all running requests are long."""
    trace = RequestTrace((100, 100_000), (10, 1000))
    (plain, *_) = traced(deployment, trace, 16)
    long = evaluate_grid(deployment, Draft(), batch_size=16, context_len=100_500)
    assert plain.tpot_s == pytest.approx(float(long.round.target_step_s), rel=0.02)


def test_memory_holds_what_the_batch_holds(deployment: Deployment) -> None:
    """Long requests stay longer, so the mean of the running batch differs from the mean of the file."""
    trace = RequestTrace((100, 100_000), (10, 1000))
    for candidate in traced(deployment, trace, 16):
        held = float(trace.context_lens @ trace.weights) * 16 * deployment.target.kv_bytes_per_token / 8
        assert candidate.at(candidate.evaluation.memory.kv_bytes) >= held
    assert not any(candidate.fits_in_memory for candidate in traced(deployment, trace, 56))
    assert not evaluate_grid(deployment, Draft(), batch_size=56, context_len=100_000).fits_in_memory
