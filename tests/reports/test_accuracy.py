"""The figure of predicted against measured."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from magicdec.costmodel.calibration.published_rows import IN_SAMPLE, LEFT_OUT, NOT_FITTED, Comparison
from magicdec.reports.accuracy import accuracy_figure
from magicdec.reports.style import Drawing

ROWS = [
    Comparison("a100", "m", "target step", IN_SAMPLE, "1 x 1", 0.010, 0.011),
    Comparison("a100", "m", "target step", IN_SAMPLE, "2 x 1", 0.020, 0.019),
    Comparison("h100", "m", "target step", IN_SAMPLE, "1 x 1", 0.005, 0.005),
    Comparison("a100", "n", "verify step", LEFT_OUT, "1 x 1", 0.030, 0.033),
    Comparison("a100", "m", "draft steps", IN_SAMPLE, "1 x 1", 0.040, 0.041),
    Comparison("a100", "m", "speedup", IN_SAMPLE, "1 x 1", 1.5, 1.6),
    Comparison("a100", "m", "speedup at the best gamma", NOT_FITTED, "1 x 1", 1.8, 1.7),
    Comparison("a100", "m", "best gamma", NOT_FITTED, "1 x 1", 3, 4),
]


@pytest.fixture(scope="module")
def drawing() -> Drawing:
    return accuracy_figure(ROWS)


def marks(drawing: Drawing, axes: int) -> dict[str, PathCollection]:
    """The marks of one plot by their label; the band around equality has none."""
    found = drawing.figure.axes[axes].collections
    return {str(one.get_label()): one for one in found if not str(one.get_label()).startswith("_")}


def test_steps_are_left_and_ratios_right_and_gammas_nowhere(drawing: Drawing) -> None:
    assert [axes.get_title() for axes in drawing.figure.axes] == ["step times", "speedups"]
    assert set(marks(drawing, 0)) == {
        "target step, a100",
        "target step, h100",
        "verify step, a100, not in the fit",
        "draft steps, a100",
    }
    assert set(marks(drawing, 1)) == {"speedup, a100", "speedup at the best gamma, a100, not in the fit"}


def test_every_row_is_a_mark_at_its_measured_and_predicted_value(drawing: Drawing) -> None:
    points = np.concatenate([one.get_offsets() for i in (0, 1) for one in marks(drawing, i).values()])
    expected = [
        (1e3 * row.measured, 1e3 * row.predicted) if "step" in row.quantity else (row.measured, row.predicted)
        for row in ROWS
        if row.quantity != "best gamma"
    ]
    np.testing.assert_allclose(sorted(map(tuple, points.tolist())), sorted(expected))


def test_rows_that_were_not_fitted_are_hollow(drawing: Drawing) -> None:
    for i in (0, 1):
        for label, one in marks(drawing, i).items():
            assert (len(one.get_facecolor()) == 0) == ("not in the fit" in label)


def test_a_quantity_has_one_colour_and_a_gpu_one_shape(drawing: Drawing) -> None:
    left = marks(drawing, 0)
    first, second = left["target step, a100"], left["target step, h100"]
    assert first.get_edgecolor().tolist() == second.get_edgecolor().tolist()
    assert first.get_paths()[0].vertices.tolist() != second.get_paths()[0].vertices.tolist()
    assert first.get_edgecolor().tolist() != left["draft steps, a100"].get_edgecolor().tolist()


def test_both_axes_are_logarithmic_and_say_their_unit(drawing: Drawing) -> None:
    for axes, unit in zip(drawing.figure.axes, ("ms", "ratio"), strict=True):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert (axes.get_xlabel(), axes.get_ylabel()) == (f"measured [{unit}]", f"predicted [{unit}]")


def test_the_line_is_equality_over_all_marks(drawing: Drawing) -> None:
    for i, axes in enumerate(drawing.figure.axes):
        (line,) = axes.get_lines()
        assert line.get_xdata() == pytest.approx(line.get_ydata())
        xs = np.concatenate([np.asarray(one.get_offsets())[:, 0] for one in marks(drawing, i).values()])
        assert min(line.get_xdata()) <= xs.min() <= xs.max() <= max(line.get_xdata())


def test_it_can_be_saved_with_its_name_title_and_caption(drawing: Drawing) -> None:
    assert drawing.name == "accuracy"
    assert drawing.title
    assert "Hollow markers were not part of the fit" in drawing.caption
    file = io.BytesIO()
    drawing.figure.savefig(file, format="svg")
    assert b"<svg" in file.getvalue()
