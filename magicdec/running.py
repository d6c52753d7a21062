"""Execute a plan: checkpoints and prompts in, texts and a comparison out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tqdm import tqdm

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.plans.measurement import Measurement
from magicdec.costmodel.plans.plan import Plan, fingerprint
from magicdec.costmodel.plans.policy import PolicyTable
from magicdec.costmodel.plans.strategy import Strategy
from magicdec.costmodel.plans.workload import Workload
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.round_log import RoundLog, merge
from magicdec.executor.engine.sampling import GREEDY, Sampling
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.engine.stop_strings import StopStrings, truncate_at_stop
from magicdec.executor.generate import batches, check_requests, check_runnable, generate, make_batch
from magicdec.executor.measuring.acceptance import AcceptanceGrid, measure_acceptance
from magicdec.executor.measuring.comparison import Comparison, compare, first_difference, log_probability_gap
from magicdec.executor.measuring.measurement import RunDescription, RunOutcome, summarise
from magicdec.executor.model.checkpoint import checkpoint_digest, load_model, stop_tokens
from magicdec.executor.model.tensor_parallel import ALONE, Ranks
from magicdec.executor.model.tokenizer import load_tokenizer
from magicdec.executor.model.transformer import Transformer
from magicdec.executor.reference_model.corpus import held_out_documents

from .names import CPU, find_model
from .outputs import digest

Write = Callable[[str, str, int], object]  # told of a prompt's id, its text and how many tokens that is

NEAR_TIE_NATS = 1e-3  # rounding in float32 swaps tokens that the model rates this much alike


@dataclass(frozen=True)
class Loaded:
    """Checkpoints in memory.

    Attributes:
        target, draft: The models.
        tokenizer: The target's.
        stops: Ids that end a text.
        digests: Of the checkpoints, the target's first.
        ranks: The processes that share the models.
    """

    target: Transformer
    draft: Transformer | None
    tokenizer: Tokenizer
    stops: tuple[int, ...]
    digests: tuple[str, ...] = ()
    ranks: Ranks = ALONE


def load(plan: Plan, *, model_dir: str | None, draft_dir: str | None, device: str, ranks: Ranks = ALONE) -> Loaded:
    """Load what a plan names, from the given directories or where its names lead, and check that it is what was planned."""
    _refuse_compressed(plan)
    folder = _folder("--model-dir", plan.target.name, model_dir)
    target = load_model(folder, device=device, name=plan.target.name, ranks=ranks)
    plan.check_model("target", target.whole, str(folder))
    strategies = (plan.strategy, *(plan.policy.strategies if plan.policy else ()))
    names = sorted({strategy.draft_model for strategy in strategies if strategy.draft_model})
    if len(names) > 1:
        raise bad("plan", "policy.strategies", "one draft model at most", ", ".join(names))
    draft, digests = None, [checkpoint_digest(folder)]
    for name in names:
        draft_folder = _folder("--draft-dir", name, draft_dir)
        draft = load_model(draft_folder, device=device, name=name, ranks=ranks)
        plan.check_model("draft", draft.whole, str(draft_folder))
        digests.append(checkpoint_digest(draft_folder))
    for strategy in strategies:
        check_runnable(strategy, target, draft)
    return Loaded(target, draft, load_tokenizer(folder), stop_tokens(folder), tuple(digests), ranks)


def _refuse_compressed(plan: Plan) -> None:
    """Weights and caches are executed in the types of the checkpoint."""
    for role in ("target", "draft"):
        for key in ("weight_dtype", "kv_dtype"):
            dtype = getattr(getattr(plan, role), key, None)
            if dtype is not None:
                expected = "null: models are executed as their checkpoints are, and compressed by serving engines (magicdec export)"
                raise bad("plan", f"{role}.{key}", expected, dtype)


def load_checkpoint(option: str, name: str, device: str = "cpu") -> Loaded:
    """A checkpoint without a plan."""
    folder = _folder(option, name, None)
    model = load_model(folder, device=device, name=name)
    return Loaded(model, None, load_tokenizer(folder), stop_tokens(folder))


def real_text(tokenizer: Tokenizer, file: str | None) -> tuple[str, list[int]]:
    """Name and tokens of a text file, or of the standard library text that the reference model never saw."""
    if file is None:
        texts = [document.text for document in held_out_documents()]
        return "Python standard library, held out", [t for encoding in tokenizer.encode_batch(texts) for t in encoding.ids]
    try:
        return Path(file).name, tokenizer.encode(Path(file).read_text(encoding="utf-8")).ids
    except (OSError, UnicodeDecodeError) as error:
        raise bad(file, "", "a readable text file", getattr(error, "strerror", None) or error) from None


def measured_points(loaded: Loaded, tokens: Sequence[int], **sizes: Any) -> list[dict[str, Any]]:
    """Acceptance over budgets and contexts, as the points of a curves file; `sizes` are those of `AcceptanceGrid`."""
    grid, points = AcceptanceGrid(**sizes), []
    with _bar(grid.num_points, "measuring acceptance", "point") as bar:
        for point in measure_acceptance(loaded.target, tokens, grid):
            points.append({key: round(value, 4) for key, value in asdict(point).items() if value is not None})
            bar.update()
    return points


def _folder(option: str, name: str, given: str | None) -> Path:
    if given is not None:
        if not Path(given).is_dir():
            raise bad(option, "", "a checkpoint directory", repr(given))
        return Path(given)
    found = find_model(name)
    if found.folder is None:
        raise bad(option, "", f"the checkpoint directory of {name}, whose weights are not shipped", "nothing")
    return found.folder


@dataclass(frozen=True)
class Difference:
    """Where a row departs from plain decoding.

    Attributes:
        words: Which prompt, where, and how much the model minds.
        near_tie: The model rates both tokens alike, so that rounding may swap them.
    """

    words: str
    near_tie: bool


@dataclass(frozen=True)
class Execution:
    """A plan that has run.

    Attributes:
        measurement: What it did.
        differences: Where the output departs from plain decoding.
    """

    measurement: Measurement
    differences: tuple[Difference, ...]


def text_digests(
    loaded: Loaded, requests: Sequence[Request], *, max_new_tokens: int, sampling: Sampling, drafting: Sequence[Any]
) -> dict[str, str]:
    """By id, a digest of what determines a prompt's text; `drafting` is part of it for samples, which depend on the draft."""
    common: list[Any] = [loaded.digests[:1], list(loaded.stops)]
    if not sampling.greedy:
        common += [asdict(sampling), loaded.digests[1:], drafting]
    return {
        request.id: digest(common, request.tokens, request.max_new_tokens or max_new_tokens, list(request.stop_strings))
        for request in requests
    }


def execute(
    loaded: Loaded,
    strategy: Strategy,
    prompts: Sequence[Request],
    *,
    batch_size: int,
    max_new_tokens: int,
    compare: bool,
    where: str,
    write: Write = lambda prompt, text, num_tokens: None,
    policy: PolicyTable | None = None,
    sampling: Sampling = GREEDY,
    hardware: str = CPU,
    ignore_stops: bool = False,
    repeats: int = 1,
) -> Execution:
    """Run prompts through a strategy, telling `write` of each text as soon as it is done.

    Finished prompts make room for waiting ones, and a policy table is heeded; to compare with plain decoding, prompts go a
    batch at a time with the one strategy instead.
    """
    check_requests(prompts, loaded.target, max_new_tokens, where)
    runs = repeats * (2 if compare else 1)
    total = sum(prompt.max_new_tokens or max_new_tokens for prompt in prompts)
    quiet = not loaded.ranks.leads
    settings = GenerationSettings(
        max_new_tokens,
        stop_tokens=() if ignore_stops else loaded.stops,
        stop_strings=StopStrings(loaded.tokenizer) if any(prompt.stop_strings for prompt in prompts) else None,
        sampling=sampling,
    )

    def wrote(prompt: Request, tokens: Sequence[int]) -> None:
        write(prompt.id, truncate_at_stop(loaded.tokenizer.decode(list(tokens)), prompt.stop_strings), len(tokens))

    with (
        _bar(len(prompts), "reading prompts", "prompt", quiet) as reading,
        _bar(runs * total, "decoding", "token", quiet) as decoding,
    ):
        if compare:
            outcome, differences = _compare(loaded, strategy, prompts, batch_size, repeats, wrote, settings, reading, decoding)
        else:
            differences = []
            batch = make_batch(loaded.target, prompts, policy or strategy, settings, batch_size=batch_size)
            batch.prefill(lambda request: reading.update())
            rounds = []
            for one in generate(batch, loaded.draft, policy or strategy):
                rounds.append(one)
                decoding.update(one.emitted)
                for completion in one.completions:
                    wrote(prompts[completion.request_index], completion.tokens)
            outcome = RunOutcome(RoundLog(rounds), batch.prefill_s)
    draft = loaded.draft
    run = RunDescription(
        workload=Workload(min(batch_size, len(prompts)), max(len(p.tokens) for p in prompts), max_new_tokens),
        strategy=strategy,
        hardware=hardware if loaded.target.device.type == "cuda" else CPU,
        target=fingerprint(loaded.target.whole),
        draft=fingerprint(draft.whole) if draft else None,
    )
    return Execution(summarise(loaded.target, run, outcome), tuple(differences))


def _compare(
    loaded: Loaded,
    strategy: Strategy,
    prompts: Sequence[Request],
    batch_size: int,
    repeats: int,
    wrote: Callable[[Request, Sequence[int]], None],
    settings: GenerationSettings,
    reading: Any,
    decoding: Any,
) -> tuple[RunOutcome, list[Difference]]:
    """Both ways of decoding, a batch at a time. Samples differ between the two by design, so only greedy texts are compared."""
    found: list[Comparison] = []
    differences: list[Difference] = []
    prefill_s = 0.0
    for part in batches(prompts, batch_size):
        batch = make_batch(loaded.target, part, strategy, settings)
        batch.prefill(lambda request: reading.update())
        one = compare(batch, loaded.draft, strategy, repeats=repeats, on_round=lambda finished: decoding.update(finished.emitted))
        found.append(one)
        prefill_s += batch.prefill_s
        for prompt, tokens in zip(part, one.log.outputs, strict=True):
            wrote(prompt, tokens)
        if settings.sampling.greedy:
            differences += _differences(loaded.target, part, one.log.outputs, one.autoregressive.outputs)
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


def _differences(
    model: Transformer, prompts: Sequence[Request], outputs: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]
) -> list[Difference]:
    """Where a batch's output departs from plain decoding, row by row, and by how much the model itself minds."""
    differences = []
    for prompt, output, plain in zip(prompts, outputs, expected, strict=True):
        place = first_difference([output], [plain])
        if place is None:
            continue
        at, nats = place[1], float("inf")
        if at < min(len(output), len(plain)):
            nats = log_probability_gap(model, [*prompt.tokens, *plain[:at]], output[at])
        gap = f"its token is {nats:.2g} nats less likely than the model's favourite"
        differences.append(
            Difference(f"prompt {prompt.id} differs from plain decoding at new token {at}: {gap}", nats < NEAR_TIE_NATS)
        )
    return differences


@contextmanager
def _bar(total: int, title: str, unit: str, quiet: bool = False) -> Iterator[Any]:
    with tqdm(total=total, desc=title, unit=unit, leave=False, disable=quiet or None) as bar:
        yield bar


def document(execution: Execution, plan: Plan) -> dict[str, Any]:
    """The outcome as `--json` prints it: what was predicted and what was measured, and whether the two can be compared."""
    predicted = plan.prediction.model_dump(exclude={"breakdown", "bound"})
    predicted["predicted_throughput_tokens_per_s"] = plan.workload.batch_size / predicted["predicted_speculative_tpot_s"]
    measurement = execution.measurement
    machine = measurement.hardware, measurement.environment.processes
    comparable = machine == (plan.hardware.name, plan.hardware.tensor_parallel) and _near(plan.workload, measurement.workload)
    differences = [asdict(difference) for difference in execution.differences]
    extra = {"comparable": comparable, "planned_for": plan.hardware.name, "differences": differences}
    return {**predicted, **measurement.model_dump(mode="json"), **extra}


def _near(planned: Workload, seen: Workload) -> bool:
    """Same batch, and contexts within a thirty-second: prompts are what they are."""
    return seen.batch_size == planned.batch_size and abs(seen.context_len / planned.context_len - 1) <= 1 / 32
