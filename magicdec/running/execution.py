"""Execute a strategy on requests, and compare it with autoregressive decoding. Sees no prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from magicdec.costmodel.plans.measurement import Measurement
from magicdec.costmodel.plans.plan import fingerprint
from magicdec.costmodel.plans.policy_table import PolicyTable
from magicdec.costmodel.plans.strategy import Strategy
from magicdec.costmodel.plans.workload import Workload
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.round_log import RoundLog, merge
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.engine.stop_strings import truncate_at_stop
from magicdec.executor.generate import batches, generate, make_batch
from magicdec.executor.measuring.comparison import compare, first_difference, log_probability_gap
from magicdec.executor.measuring.measurement import RunDescription, RunOutcome, summarise
from magicdec.executor.model.transformer import Transformer

from ..files.completions import Completion
from ..inputs.cpu_profile import CPU, BarMaker
from ..render.progress import progress_bar
from ..results.run import Difference
from .checkpoints import LoadedModels

NEAR_TIE_NATS = 1e-3  # rounding in float32 swaps tokens whose log-probabilities are this close

OnCompletion = Callable[[Completion], object]


@dataclass(frozen=True)
class Job:
    """What to execute.

    Attributes:
        strategy: How tokens are drafted, where no policy table says otherwise.
        policy: Strategies by running sequences and mean context, if a plan has such a table; not used in a comparison.
        batch_size: Sequences decoded together.
        hardware: Profile of the machine, as the plan names it.
        compare: Also decode autoregressively.
        repeats: Turns of a comparison.
        between: Called before, between and after the timed parts of a comparison.
    """

    strategy: Strategy
    batch_size: int
    policy: PolicyTable | None = None
    hardware: str = CPU
    compare: bool = False
    repeats: int = 1
    between: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Execution:
    """What has run.

    Attributes:
        measurement: The record of it.
        differences: Where outputs differ from those of autoregressive decoding.
    """

    measurement: Measurement
    differences: tuple[Difference, ...]


def execute(
    models: LoadedModels,
    requests: Sequence[Request],
    job: Job,
    settings: GenerationSettings,
    on_completion: OnCompletion,
    bar: BarMaker | None = None,
) -> Execution:
    """Continue all requests. Finished ones make room for waiting ones.

    A comparison goes a batch at a time instead, without the policy table.

    Args:
        models: The target, and the draft model if there is one.
        requests: What to continue.
        job: How.
        settings: Limits, stop conditions and sampling.
        on_completion: Receives each completion as soon as it is done.
        bar: Shows progress; None for bars on a terminal.

    Raises:
        InputError: Out of memory, a draft model with too short a context, or infinite or NaN logits.
    """
    bar = bar or partial(progress_bar, quiet=not models.ranks.is_rank0)
    turns = 2 * job.repeats if job.compare else 1
    tokens = turns * sum(request.max_new_tokens or settings.max_new_tokens for request in requests)

    def done(request: Request, tokens: Sequence[int]) -> None:
        text = truncate_at_stop(models.tokenizer.decode(list(tokens)), request.stop_strings)
        on_completion(Completion(request.id, text, len(tokens)))

    with (
        bar(len(requests), "reading prompts", "prompt") as prefilled,
        bar(tokens, "decoding", "token") as decoded,
    ):
        progress = _Progress(lambda: prefilled(1), decoded)
        if job.compare:
            outcome, differences = _compared(models, requests, job, settings, done, progress)
        else:
            outcome, differences = _generated(models, requests, job, settings, done, progress), []
    run = RunDescription(
        workload=Workload(
            min(job.batch_size, len(requests)), max(len(request.tokens) for request in requests), settings.max_new_tokens
        ),
        strategy=job.strategy,
        hardware=job.hardware if models.target.device.type == "cuda" else CPU,
        target=fingerprint(models.target.whole),
        draft=fingerprint(models.draft.whole) if models.draft else None,
    )
    return Execution(summarise(models.target, run, outcome), tuple(differences))


@dataclass(frozen=True)
class _Progress:
    """Where progress is told: after each prefill, and tokens after each round."""

    prefilled: Callable[[], object]
    decoded: Callable[[int], object]


Done = Callable[[Request, Sequence[int]], None]


def _generated(
    models: LoadedModels, requests: Sequence[Request], job: Job, settings: GenerationSettings, done: Done, progress: _Progress
) -> RunOutcome:
    strategy = job.policy or job.strategy
    batch = make_batch(models.target, requests, strategy, settings, batch_size=job.batch_size)
    batch.prefill(lambda request: progress.prefilled())
    rounds = []
    for one in generate(batch, models.draft, strategy):
        rounds.append(one)
        progress.decoded(one.emitted)
        for completion in one.completions:
            done(requests[completion.request_index], completion.tokens)
    return RunOutcome(RoundLog(rounds), batch.prefill_s)


def _compared(
    models: LoadedModels, requests: Sequence[Request], job: Job, settings: GenerationSettings, done: Done, progress: _Progress
) -> tuple[RunOutcome, list[Difference]]:
    """Both ways of decoding, a batch at a time. Samples differ by design, so only greedy outputs are compared."""
    found, differences, prefill_s = [], [], 0.0
    for part in batches(requests, job.batch_size):
        batch = make_batch(models.target, part, job.strategy, settings)
        batch.prefill(lambda request: progress.prefilled())
        one = compare(
            batch,
            models.draft,
            job.strategy,
            repeats=job.repeats,
            on_round=lambda round: progress.decoded(round.emitted),
            between=job.between,
        )
        found.append(one)
        prefill_s += batch.prefill_s
        for request, tokens in zip(part, one.log.outputs, strict=True):
            done(request, tokens)
        if settings.sampling.greedy:
            differences += find_differences(models.target, part, one.log.outputs, one.autoregressive.outputs)
    greedy = settings.sampling.greedy
    outcome = RunOutcome(
        log=merge(one.log for one in found),
        prefill_s=prefill_s,
        autoregressive=merge(one.autoregressive for one in found),
        outputs_identical=not differences if greedy else None,
        tokens_compared=sum(len(row) for one in found for row in one.autoregressive.outputs) if greedy else 0,
        select_step_s=found[0].select_step_s,
    )
    return outcome, differences


def find_differences(
    model: Transformer, requests: Sequence[Request], outputs: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]
) -> list[Difference]:
    """The first differing token of every request whose outputs differ, with its log-probability gap."""
    found = []
    for request, output, autoregressive in zip(requests, outputs, expected, strict=True):
        place = first_difference([output], [autoregressive])
        if place is None:
            continue
        position, gap = place[1], float("inf")
        if position < min(len(output), len(autoregressive)):
            gap = log_probability_gap(model, [*request.tokens, *autoregressive[:position]], output[position])
        found.append(Difference(request.id, position, gap, gap < NEAR_TIE_NATS))
    return found
