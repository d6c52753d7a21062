from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.base.units import (
    format_bytes,
    format_rate,
    format_seconds,
    format_tokens,
    parse_seconds,
    parse_token_range,
    parse_tokens,
)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("512", 512),
        ("32k", 32_000),
        ("32K", 32_000),
        ("2Ki", 2048),
        ("1.5k", 1500),
        ("1M", 1_000_000),
        (" 8 k ", 8000),
        ("1e3", 1000),
    ],
)
def test_lengths_are_read_with_decimal_and_binary_prefixes(text: str, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@given(st.integers(1, 10_000_000))
def test_any_number_of_tokens_can_be_written_in_thousands(tokens: int) -> None:
    assert parse_tokens(f"{tokens / 1000:.3f}k") == tokens


@given(st.integers(1, 10_000_000))
def test_printed_lengths_are_read_back(tokens: int) -> None:
    assert parse_tokens(format_tokens(tokens)) == tokens


@pytest.mark.parametrize("text", ["", "k", "many", "-5", "0", "1.5", "12ms", "1_000", "5 0", "1e-3", "nan", "inf"])
def test_what_is_not_a_whole_number_of_tokens_is_refused_by_option_name(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_tokens(text, "kv_budget")
    (problem,) = caught.value.problems
    assert problem.where == "kv_budget"
    assert "positive whole number" in problem.expected
    assert problem.found == repr(text)
    assert str(caught.value) == f"kv_budget: expected {problem.expected}, found {text!r}"


def test_a_number_beyond_all_floats_is_refused_too() -> None:
    with pytest.raises(InputError, match=r"context_len.*1e999"):
        parse_tokens("1e999", "context_len")


@pytest.mark.parametrize(
    ("text", "seconds"), [("50ms", 0.05), ("1.5 s", 1.5), ("200us", 2e-4), ("200µs", 2e-4), ("0.05s", 0.05), ("5e-3 s", 5e-3)]
)
def test_times_are_read_with_their_unit(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds, rel=1e-15)


@pytest.mark.parametrize("text", ["", "ms", "fast", "0", "0ms", "-1s", "5k", "5 minutes", "nan"])
def test_what_is_not_a_positive_time_is_refused_by_option_name(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_seconds(text, "max_tpot_s")
    (problem,) = caught.value.problems
    assert problem.where == "max_tpot_s"
    assert "positive time" in problem.expected
    assert problem.found == repr(text)


@pytest.mark.parametrize("text", ["15", "0.5", "5e-3"])
def test_a_time_without_unit_is_asked_about(text: str) -> None:
    with pytest.raises(InputError, match=rf"max_tpot_s: expected a time with its unit: {text}ms or {text}s\?, found '{text}'"):
        parse_seconds(text, "max_tpot_s")


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_a_range_has_its_ends_and_the_doublings_between(first: int, second: int) -> None:
    if first > second:
        with pytest.raises(InputError, match=f"{second}-{first}\\?"):
            parse_token_range(f"{first}-{second}")
        return
    found = parse_token_range(f"{first}-{second}")
    assert (found[0], found[-1]) == (first, second)
    assert all(after == 2 * before for before, after in pairwise(found[:-1]))
    assert found == tuple(sorted(set(found)))


@given(st.floats(1e-6, 1e3))
def test_printed_times_are_read_back_to_three_digits(seconds: float) -> None:
    assert parse_seconds(format_seconds(seconds)) == pytest.approx(seconds, rel=5.1e-3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.5, "1.50 s"), (0.0123, "12.3 ms"), (2e-4, "200 µs"), (3.21e-8, "32.1 ns"), (0.0, "0 s"), (-0.0123, "-12.3 ms")],
)
def test_times_are_printed_with_the_prefix_that_fits(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(8e10, "80.0 GB"), (1.41e11, "141 GB"), (131072, "131 kB"), (12, "12.0 B"), (0, "0 B"), (3e15, "3.00 PB")]
)
def test_bytes_are_printed_with_decimal_prefixes(value: float, text: str) -> None:
    assert format_bytes(value) == text


def test_rates_are_printed_with_their_own_unit() -> None:
    assert format_rate(3.35e12, "B/s") == "3.35 TB/s"
    assert format_rate(9.89e14, "FLOP/s") == "989 TFLOP/s"


@pytest.mark.parametrize(("value", "text"), [(9.999e9, "10.0 GB"), (9.9999e10, "100 GB"), (9.996e11, "1.00 TB")])
def test_rounding_up_keeps_three_significant_digits(value: float, text: str) -> None:
    assert format_bytes(value) == text


@pytest.mark.parametrize(("tokens", "text"), [(512, "512"), (8192, "8192"), (1000, "1k"), (32_000, "32k"), (1, "1")])
def test_lengths_are_printed_as_people_write_them(tokens: int, text: str) -> None:
    assert format_tokens(tokens) == text
