"""Planning figures for any model, machine and draft, after the figures of the MagicDec paper."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.typing import ArrayLike, NDArray

from magicdec.costmodel.base.units import format_tokens
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.passes.forward import forward_cost
from magicdec.costmodel.passes.roofline import BOUNDS
from magicdec.costmodel.planning.search import GAMMAS
from magicdec.costmodel.speculation.acceptance import AcceptanceCurve
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import Evaluation, evaluate_grid

from .style import BOUND_COLOURS, LINE_COLOURS, Drawing, log2_axis, new_figure, plain


@dataclass(frozen=True)
class PlanningGrid:
    """Model, machine, draft and axes of the planning figures.

    Attributes:
        deployment: Model and machine.
        draft: The draft.
        batch_sizes, context_lens: Ascending axes. [sequences, tokens]
        kv_budget: KV entries the draft reads; inf for all. [tokens]
        curves: Acceptance curves to look up.
        ridges: Machines whose ridge point is drawn.
        output_len: Tokens that each sequence grows by, in the map and the lines of speedup. [tokens]
        acceptance_rate: Known acceptance, instead of `curves`. [0-1]
    """

    deployment: Deployment
    draft: Draft
    batch_sizes: NDArray[np.int64]
    context_lens: NDArray[np.int64]
    kv_budget: float
    curves: tuple[AcceptanceCurve, ...]
    ridges: tuple[HardwareProfile, ...]
    output_len: int = 0
    acceptance_rate: float | None = None

    @property
    def heading(self) -> str:
        """Model and machine, for titles."""
        s = self.deployment
        return f"{s.target.name} on {s.num_gpus} x {s.hardware.name}"

    @property
    def draft_words(self) -> str:
        """The draft, for titles."""
        return self.draft.strategy(1, self.kv_budget if np.isfinite(self.kv_budget) else 1).draft_text

    def evaluate(self, batch_size: ArrayLike, context_len: ArrayLike, gamma: ArrayLike) -> Evaluation:
        """Evaluate the grid."""
        return evaluate_grid(
            self.deployment,
            self.draft,
            batch_size=batch_size,
            context_len=context_len,
            gamma=gamma,
            kv_budget=self.kv_budget,
            curves=self.curves,
            acceptance_rate=self.acceptance_rate,
        )

    def best(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Speedup at the best gamma, that gamma, fits in memory, and interval above 1; each [batch, context]."""
        gammas = np.array(GAMMAS)
        contexts = self.context_lens[:, None] + self.output_len / 2  # as plans and maps do
        e = self.evaluate(self.batch_sizes[:, None, None], contexts, gammas)
        speedup = e.round.speedup
        choice = np.broadcast_to(e.speedup_low, speedup.shape).argmax(axis=-1)
        fits = np.take_along_axis(np.asarray(e.fits_in_memory), choice[..., None], -1)[..., 0]
        sure = np.take_along_axis(e.speedup_low > 1, choice[..., None], -1)[..., 0]
        return np.take_along_axis(speedup, choice[..., None], -1)[..., 0], gammas[choice], fits, sure


def planning_figures(grid: PlanningGrid) -> list[Drawing]:
    """Draw all planning figures."""
    return [
        time_breakdown(grid),
        cost_ratios(grid),
        speedup_by_batch(grid),
        arithmetic_intensity(grid),
        speedup_map(grid),
    ]


def time_breakdown(grid: PlanningGrid) -> Drawing:
    """Breakdown of an autoregressive step against batch size, at the shortest and the longest context."""
    contexts = [int(grid.context_lens[0]), int(grid.context_lens[-1])]
    figure, axes = new_figure(len(contexts))
    for ax, context in zip(axes, contexts, strict=True):
        step = grid.evaluate(grid.batch_sizes, context, 1).target
        bottom = np.zeros(len(grid.batch_sizes))
        places = np.arange(len(grid.batch_sizes))
        for bound in BOUNDS:
            part = 1e3 * step.parts[bound]
            ax.bar(places, part, bottom=bottom, width=0.75, color=BOUND_COLOURS[bound], label=bound)
            bottom = bottom + part
        ax.set_xticks(places, [str(b) for b in grid.batch_sizes])
        ax.set_xlabel("batch size [sequences]")
        ax.set_ylabel("time of one decoding step [ms]")
        ax.set_title(f"context {format_tokens(context)} tokens", fontsize=10)
    axes[0].legend(frameon=False)
    figure.suptitle(plain(grid.heading), fontsize=11)
    caption = "Overlapped time is counted once. KV-cache reads grow with batch size times context."
    return Drawing("time_breakdown", "Where the time of a decoding step goes", caption, figure)


def cost_ratios(grid: PlanningGrid, gamma: int = 4) -> Drawing:
    """T_D / T_T and T_V / T_T against batch size, one line per context."""
    figure, axes = new_figure(2)
    for colour, context in zip(cycle(LINE_COLOURS), grid.context_lens, strict=False):
        r = grid.evaluate(grid.batch_sizes, context, gamma).round
        for ax, ratio in zip(axes, (r.draft_cost, r.verify_cost), strict=True):
            ax.plot(grid.batch_sizes, ratio, marker="o", markersize=3.5, color=colour, label=format_tokens(context))
    for ax, name in zip(
        axes, ("draft step / target step, T_D / T_T", f"verify / target step, T_V / T_T (gamma {gamma})"), strict=True
    ):
        log2_axis(ax, grid.batch_sizes.tolist(), "batch size [sequences]")
        ax.set_ylabel(f"{name} [ratio]")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(title="context [tokens]", frameon=False, fontsize=8)
    figure.suptitle(plain(f"{grid.heading}; {grid.draft_words}"), fontsize=11)
    caption = (
        "Speculation pays where drafts are cheap (left: low) and verification costs little more than decoding (right: near 1)."
    )
    return Drawing("cost_ratios", "What drafting and verifying cost, in target steps", caption, figure)


def speedup_by_batch(grid: PlanningGrid) -> Drawing:
    """Expected speedup at the best gamma against batch size, one line per context; hollow markers do not fit in memory."""
    figure, (ax,) = new_figure()
    speedup, gamma, fits, _ = grid.best()
    for column, (colour, context) in enumerate(zip(cycle(LINE_COLOURS), grid.context_lens, strict=False)):
        ax.plot(grid.batch_sizes, speedup[:, column], color=colour, label=format_tokens(context))
        for fitting, face in ((True, colour), (False, "white")):
            chosen = fits[:, column] == fitting
            ax.scatter(grid.batch_sizes[chosen], speedup[chosen, column], s=18, facecolor=face, edgecolor=colour, zorder=3)
        ax.annotate(
            f"γ={gamma[-1, column]}", (grid.batch_sizes[-1], speedup[-1, column]), (5, -3), textcoords="offset points", fontsize=8
        )
    ax.axhline(1, color="black", linewidth=0.8, linestyle="--")
    log2_axis(ax, grid.batch_sizes.tolist(), "batch size [sequences]")
    ax.set_ylabel("speedup over autoregressive decoding [ratio]")
    ax.legend(title="context [tokens]", frameon=False, fontsize=8)
    ax.set_title(plain(f"{grid.heading}; {grid.draft_words}"), fontsize=10)
    caption = "Speculation pays above the dashed line. Where a line rises, KV-cache reads take a growing share of each step."
    return Drawing("speedup_by_batch", "Expected speedup at the best gamma", caption + " Hollow: does not fit in memory.", figure)


def arithmetic_intensity(grid: PlanningGrid) -> Drawing:
    """Arithmetic intensity of a decoding step against context, one line per batch size, with the ridge points of several GPUs."""
    figure, (ax,) = new_figure()
    model = grid.deployment.target
    contexts = np.geomspace(max(grid.context_lens[0], 128), grid.context_lens[-1], 60)
    for colour, batch in zip(cycle(LINE_COLOURS), grid.batch_sizes, strict=False):
        cost = forward_cost(model, batch_size=batch, query_len=1, context_len=contexts)
        ax.plot(contexts, cost.arithmetic_intensity, color=colour, label=str(batch))
    for hardware in grid.ridges:
        ridge = hardware.ridge_point(model.dtype)
        ax.axhline(ridge, color="black", linewidth=0.7, linestyle=":")
        ax.annotate(
            plain(f"ridge of {hardware.name}"), (contexts[-1], ridge), (0, 2), textcoords="offset points", ha="right", fontsize=8
        )
    ax.set_yscale("log")
    log2_axis(ax, grid.context_lens.tolist(), "context [tokens]")
    ax.set_ylabel("arithmetic intensity [FLOP/byte]")
    ax.legend(title="batch size [sequences]", frameon=False, fontsize=8, ncols=4, loc="lower right")
    ax.set_ylim(bottom=0.3)
    ax.set_title(plain(f"{model.name}, one decoding step"), fontsize=10)
    caption = "A step below a GPU's ridge line is memory-bound on it; longer contexts are further below."
    return Drawing("arithmetic_intensity", "Arithmetic intensity falls with context", caption, figure)


def speedup_map(grid: PlanningGrid) -> Drawing:
    """Speedup over batch and context with the best gamma per cell; `off` where the interval on the speedup reaches below 1."""
    figure, (ax,) = new_figure()
    ax.grid(False)
    speedup, gamma, fits, sure = grid.best()
    reach = max(abs(np.log2(speedup)).max(), 0.1)
    image = ax.imshow(np.log2(speedup), origin="lower", aspect="auto", cmap="RdBu", vmin=-reach, vmax=reach)
    for i in range(speedup.shape[0]):
        for j in range(speedup.shape[1]):
            ink = "white" if abs(np.log2(speedup[i, j])) > 0.6 * reach else "black"
            words = f"{speedup[i, j]:.2f}x\nγ={gamma[i, j]}" if sure[i, j] else f"{speedup[i, j]:.2f}x\noff"
            ax.text(j, i, words + ("" if fits[i, j] else "\nno memory"), ha="center", va="center", fontsize=7.5, color=ink)
    ax.set_xticks(range(len(grid.context_lens)), [format_tokens(c) for c in grid.context_lens])
    ax.set_yticks(range(len(grid.batch_sizes)), [str(b) for b in grid.batch_sizes])
    ax.set_xlabel("context [tokens]")
    ax.set_ylabel("batch size [sequences]")
    bar = figure.colorbar(image, ax=ax, label="speedup [ratio]")
    ticks = np.linspace(-reach, reach, 5)
    bar.set_ticks(ticks.tolist(), labels=[f"{2**t:.2f}" for t in ticks])
    ax.set_title(plain(f"{grid.heading}; {grid.draft_words}"), fontsize=10)
    caption = "Each cell shows the speedup and the gamma to use, or off where the interval on the speedup reaches below 1."
    return Drawing("speedup_map", "Speedup over batch and context, with the best gamma", caption, figure)
