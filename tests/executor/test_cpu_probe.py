"""Probing this machine: the model is reproducible, and all rounds are measured."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import TINY

from magicdec.executor.measuring import cpu_probe as probe
from magicdec.executor.measuring.cpu_probe import num_measurements, probe_cpu, random_model
from magicdec.executor.measuring.loop_probe import LoopProbe, LoopShapes, LoopTimes, RoundTimes, average


@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": True}, {"qk_norm": True}, {"qkv_bias": True}], ids=str)
def test_a_random_model_depends_on_its_seed_alone(changes: dict[str, bool]) -> None:
    config = replace(TINY, dtype="float32", **changes)
    torch.manual_seed(1)
    first = random_model(config).state_dict()
    torch.manual_seed(2)
    again = random_model(config).state_dict()
    other = random_model(config, seed=7).state_dict()
    assert [name for name in first if not torch.equal(first[name], again[name])] == []
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_a_random_model_is_ready_for_inference_and_finite() -> None:
    model = random_model(replace(TINY, dtype="float32"))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    logits = model.logits(model(torch.arange(9)[None], torch.arange(9)[None]))
    assert bool(logits.isfinite().all())
    assert float(logits.std()) > 0


SMALL = LoopShapes(batch_sizes=(1, 2), context_lens=(24, 48), kv_budgets=(8, 16), gammas=(1, 3))


def test_all_rounds_are_measured_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SHAPES", SMALL)
    monkeypatch.setattr(probe, "product_rates", lambda: {"float32": 1e9})
    monkeypatch.setattr(probe, "read_rate", lambda: 1e10)
    told: list[None] = []
    found = probe_cpu(replace(TINY, dtype="float32"), progress=lambda: told.append(None))
    rounds = found.times.rounds
    assert [(one.batch_size, one.context_len, one.gamma) for one in rounds] == [
        (b, s, gamma) for b in (1, 2) for s in (24, 48) for gamma in (0, 1, 3)
    ]
    assert all(one.verify_s > 0 and one.rest_s > 0 for one in rounds)
    assert all(one.draft_s > 0 for one in rounds if one.gamma)
    assert found.times.round_overhead_s > 0
    assert found.times.copy_bytes_per_s(100.0) > 0
    assert found.memory_bytes > 0
    assert found.cache_bytes > 0
    assert (found.flop_per_s, found.memory_bandwidth_bytes_per_s) == ({"float32": 1e9}, 1e10)
    assert len(told) == num_measurements()


def test_more_draft_steps_and_more_entries_take_longer() -> None:
    """Drafting 8 tokens takes longer than 1, and reading 4000 entries longer than 40, by far more than noise."""
    model = random_model(replace(TINY, dtype="float32", max_context_len=5000))
    shapes = LoopShapes(batch_sizes=(4,), context_lens=(40, 4000), kv_budgets=(16, 16), gammas=(1, 8))
    rounds = {(one.context_len, one.gamma): one for one in LoopProbe(model, shapes).measure(shapes).rounds}
    assert rounds[40, 8].draft_s > 2 * rounds[40, 1].draft_s
    assert rounds[4000, 8].verify_s > rounds[40, 8].verify_s


def look(**times: float) -> LoopTimes:
    usual = {"draft_s": 1.0, "verify_s": 2.0, "rest_s": 0.5, "copy_s": 0.25}
    plain = RoundTimes(4, 100, 10, 0, draft_s=0.0, verify_s=2.0, rest_s=0.3, copy_s=0.0)
    return LoopTimes((plain, RoundTimes(4, 100, 10, 3, **{**usual, **times})))


def test_several_looks_are_averaged_so_that_interruptions_count() -> None:
    found = average([look(), look(draft_s=4.0, rest_s=0.7)])
    assert found.rounds[0] == look().rounds[0]
    assert found.rounds[1].draft_s == 2.5
    assert found.rounds[1].rest_s == found.round_overhead_s == pytest.approx(0.6)


def test_copies_are_rated_by_what_the_first_round_took_longer() -> None:
    assert look().copy_bytes_per_s(1000.0) == 4 * 10 * 1000.0 / 0.25
    assert look(copy_s=-0.1).copy_bytes_per_s(1000.0) == math.inf
