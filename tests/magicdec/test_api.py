"""The public Python functions."""

from dataclasses import replace

import numpy as np
import pytest

import magicdec
from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.inputs.cpu_profile import CPU
from magicdec.inputs.names import REFERENCE, executed, find_draft, find_model


def test_the_public_names_exist() -> None:
    assert all(callable(getattr(magicdec, name)) for name in magicdec.__all__)
    with pytest.raises(AttributeError, match="no attribute 'foretell'"):
        magicdec.foretell  # noqa: B018


def test_predict_takes_a_grid() -> None:
    batches, contexts = np.array([[1], [32], [128]]), np.array([4000, 32000])
    grid = magicdec.predict("llama-3.1-8b", "h100-sxm", num_gpus=8, batch_size=batches, context_len=contexts)
    assert grid.round.speedup.shape == (3, 2)
    point = magicdec.predict("llama-3.1-8b", "h100-sxm", num_gpus=8, batch_size=128, context_len=32000)
    assert float(point.round.speedup) == grid.round.speedup[2, 1]


def test_plan_chooses_speculation_where_decoding_is_kv_bound_and_not_elsewhere() -> None:
    large = magicdec.plan("llama-3.1-8b", "h100-sxm", num_gpus=8, batch_size=64, context_len=32000)
    assert large.strategy.draft_kind == "self"
    assert large.prediction.predicted_speedup_low > 1
    small = magicdec.plan("llama-3.1-8b", "h100-sxm", num_gpus=8, batch_size=1, context_len=1000)
    assert small.strategy.draft_kind == "none"


def test_a_model_is_priced_in_the_types_it_runs_in() -> None:
    """A CPU whose profile has a rate for them keeps matrices in 16 bits, unless sharded; a GPU runs a checkpoint as it is."""
    config, gpu = find_model(REFERENCE).config, resolve_profile("h100-sxm")
    cpu = replace(gpu, name=CPU)
    in_torch = replace(cpu, peak=replace(cpu.peak, flop_per_s={"float32": 1e12}))
    found = [executed(config, *where) for where in ((gpu,), (cpu,), (cpu, 2), (in_torch,))]
    assert [one.dtype for one in found] == ["float16", "float32", "float32", "float32"]
    assert [one.linear_dtype for one in found] == [one.embedding_dtype for one in found] == [None, "float16", None, None]
    draft = find_draft(REFERENCE, None, Deployment(executed(config, cpu, 2), cpu, 2, 2))
    assert draft.model == executed(config, cpu, 2)
