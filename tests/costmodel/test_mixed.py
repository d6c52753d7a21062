"""Different devices that share a model by layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.hardware.catalog import datasheets, resolve_profile
from magicdec.costmodel.hardware.mixed import STAGE_S, layer_split, split_note
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.speculation.deployment import Deployment

MODEL = resolve_model("llama-3.1-8b")
CARDS = st.lists(st.sampled_from(list(datasheets())), min_size=2, max_size=4)


def step_s(*names: str, batch: int = 1) -> float:
    profiles = [resolve_profile(name) for name in names]
    hardware = profiles[0] if len(profiles) == 1 else layer_split(profiles)
    return float(Deployment(MODEL, hardware).pass_time(batch, 1, 8000).total_s)


def test_two_equal_cards_take_as_long_as_one_and_hold_twice_as_much() -> None:
    one, two = resolve_profile("rtx-3090"), layer_split([resolve_profile("rtx-3090")] * 2)
    assert two.peak.memory_bytes == 2 * one.peak.memory_bytes
    assert step_s("rtx-3090", "rtx-3090") == pytest.approx(step_s("rtx-3090") + STAGE_S, rel=1e-9)


def test_equal_calibrated_cards_keep_their_calibration() -> None:
    split = layer_split([resolve_profile("l40s")] * 2)
    assert split.calibrated
    assert not layer_split([resolve_profile("l40s"), resolve_profile("rtx-3090")]).calibrated


def test_a_step_is_the_sum_of_the_stages_that_each_card_takes_for_its_layers() -> None:
    """16 of 40 GB lie on the first card: 12.8 of 32 layers. Each stage is priced alone, with its own rates."""
    cards = [resolve_profile("rtx-5080"), resolve_profile("rtx-3090")]
    shares = [16 / 40, 24 / 40]
    stages = []
    for card, share in zip(cards, shares, strict=True):
        whole = Deployment(MODEL, card).pass_time(1, 1, 8000)
        stages.append(share * float(whole.weights_s + whole.kv_s + whole.compute_s))
    split = Deployment(MODEL, layer_split(cards)).pass_time(1, 1, 8000)
    assert float(split.weights_s + split.kv_s + split.compute_s) == pytest.approx(sum(stages), rel=0.01)


@given(CARDS, st.sampled_from([1, 16]))
def test_a_split_lies_between_its_slowest_and_its_fastest_card(names: list[str], batch: int) -> None:
    alone = [step_s(name, batch=batch) for name in names]
    assert min(alone) * 0.95 <= step_s(*names, batch=batch) <= max(alone) * 1.05 + STAGE_S * len(names)


@given(CARDS)
def test_the_order_of_the_cards_does_not_matter(names: list[str]) -> None:
    forward, back = (layer_split([resolve_profile(name) for name in order]).peak for order in (names, names[::-1]))
    for key in ("memory_bytes", "memory_bandwidth_bytes_per_s", "num_sms"):
        assert getattr(forward, key) == pytest.approx(getattr(back, key), rel=1e-12)
    assert forward.flop_per_s == pytest.approx(back.flop_per_s, rel=1e-12)


def test_a_type_that_one_card_lacks_is_widened_there_alone() -> None:
    split = layer_split([resolve_profile("rtx-5080"), resolve_profile("rtx-3090")])
    new, old = resolve_profile("rtx-5080"), resolve_profile("rtx-3090")
    expected = 1 / (0.4 / new.flop_per_s("fp8") + 0.6 / old.flop_per_s("bfloat16"))
    assert split.flop_per_s("fp8") == pytest.approx(expected)


def test_the_note_says_who_holds_what() -> None:
    note = split_note([resolve_profile("rtx-5080"), resolve_profile("rtx-3090")])
    assert "40% on rtx-5080, 60% on rtx-3090" in note
    assert "llama.cpp" in note


def test_a_list_of_one_or_of_very_many_is_refused() -> None:
    card = resolve_profile("rtx-3090")
    for count in (0, 1, 65):
        with pytest.raises(InputError, match="2 to 64 devices"):
            layer_split([card] * count)


def test_another_text_is_another_fingerprint() -> None:
    one, other = resolve_profile("rtx-5080"), resolve_profile("rtx-3090")
    assert layer_split([one, other]).sha256 != layer_split([one, replace(other, text="changed")]).sha256
    assert np.isfinite(layer_split([one, other]).ridge_point("bfloat16"))
