"""The public Python functions."""

import numpy as np
import pytest

import magicdec


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
