"""Execute a plan: checkpoints and prompts in, texts and a comparison out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from tokenizers import Tokenizer
from tqdm import tqdm

from costmodel.errors import bad
from costmodel.plan import Plan, fingerprint
from costmodel.strategy import Strategy
from costmodel.workload import Workload
from executor.acceptance import measure_acceptance
from executor.measure import Measurement, summarise
from executor.reference_model.corpus import held_out_documents
from executor.run import (
    Prompt,
    Result,
    batches,
    check_prompts,
    check_runnable,
    first_difference,
    log_probability_gap,
    merge,
    run_batch,
)
from executor.tokenizer import load_tokenizer
from executor.transformer import Transformer
from executor.weights import load_model, stop_tokens
from magicdec.names import CPU, find_model

NEAR_TIE_NATS = 1e-3  # rounding in float32 swaps tokens that the model rates this much alike


@dataclass(frozen=True)
class Loaded:
    """Checkpoints in memory.

    Attributes:
        target, draft: The models.
        tokenizer: The target's.
        stops: Ids that end a text.
    """

    target: Transformer
    draft: Transformer | None
    tokenizer: Tokenizer
    stops: tuple[int, ...]


def load(plan: Plan, *, model_dir: str | None, draft_dir: str | None, device: str) -> Loaded:
    """Load what a plan names, from the given directories or where its names lead, and check that it is what was planned."""
    folder = _folder("--model-dir", plan.target.name, model_dir)
    dtype = "float32" if device == "cpu" else None
    target = load_model(folder, device=device, dtype=dtype, name=plan.target.name)
    plan.check_model("target", target.config, str(folder))
    draft = None
    if plan.draft is not None:
        draft_folder = _folder("--draft-dir", plan.draft.name, draft_dir)
        draft = load_model(draft_folder, device=device, dtype=dtype, name=plan.draft.name)
        plan.check_model("draft", draft.config, str(draft_folder))
    check_runnable(plan.strategy, target, draft)
    return Loaded(target, draft, load_tokenizer(folder), stop_tokens(folder))


def load_checkpoint(option: str, name: str, device: str = "cpu") -> Loaded:
    """A checkpoint without a plan."""
    folder = _folder(option, name, None)
    model = load_model(folder, device=device, dtype="float32" if device == "cpu" else None, name=name)
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
    """Acceptance over budgets and contexts, as the points of a curves file; `sizes` are those of `measure_acceptance`."""
    with _bar(len(sizes["kv_budgets"]) * len(sizes["context_lens"]), "measuring acceptance", "point") as bar:
        points = measure_acceptance(loaded.target, tokens, **sizes, progress=bar.update)
    return [{key: round(value, 4) for key, value in asdict(point).items()} for point in points]


def _folder(option: str, name: str, given: str | None) -> Path:
    if given is not None:
        if not Path(given).is_dir():
            raise bad(option, "", "a checkpoint directory", repr(given))
        return Path(given)
    found = find_model(name)
    if found.folder is None:
        raise bad(option, "", f"the checkpoint directory of {name}, whose weights are not shipped", "nothing")
    return found.folder


def read_prompts(source: str, stdin: IO[str]) -> list[tuple[str, str]]:
    """(id, text) of every prompt: one a line, or JSON lines with `id` and `prompt`. `-` is standard input.

    Raises:
        InputError: The file cannot be read or holds no prompt, or a JSON line lacks a prompt.
    """
    where = "standard input" if source == "-" else source
    try:
        text = stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise bad(source, "", "a readable text file of prompts", getattr(error, "strerror", None) or error) from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise bad(where, "", "one prompt a line, or JSON lines with id and prompt", "nothing")
    if lines[0][1].lstrip().startswith("{"):
        return [_json_prompt(line, f"{where}: line {number}", str(number)) for number, line in lines]
    return [(str(number), line) for number, line in lines]


def _json_prompt(line: str, where: str, default_id: str) -> tuple[str, str]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise bad(where, "", "a JSON object", error) from None
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str) or not record["prompt"]:
        raise bad(where, "prompt", "a text", repr(record.get("prompt")) if isinstance(record, dict) else record)
    return str(record.get("id", default_id)), record["prompt"]


def encode(tokenizer: Tokenizer, prompts: Sequence[tuple[str, str]]) -> list[Prompt]:
    """Token ids of every prompt."""
    encodings = tokenizer.encode_batch([text for _, text in prompts])
    return [Prompt(name, encoding.ids) for (name, _), encoding in zip(prompts, encodings, strict=True)]


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


def execute(
    loaded: Loaded,
    strategy: Strategy,
    prompts: Sequence[Prompt],
    *,
    batch_size: int,
    max_new_tokens: int,
    compare: bool,
    where: str,
    sink: IO[str] | None = None,
    hardware: str = CPU,
    ignore_stops: bool = False,
    repeats: int = 1,
) -> Execution:
    """Run prompts through a strategy, a batch at a time, writing each batch's texts to `sink` as JSON lines when it is done."""
    check_prompts(prompts, loaded.target, max_new_tokens, where)
    results: list[Result] = []
    differences: list[Difference] = []
    stops = () if ignore_stops else loaded.stops
    runs = repeats * (2 if compare else 1)
    with (
        _bar(len(prompts), "reading prompts", "prompt") as reading,
        _bar(runs * len(prompts) * max_new_tokens, "decoding", "token") as decoding,
    ):
        for part in batches(prompts, batch_size):
            result = run_batch(
                loaded.target,
                loaded.draft,
                part,
                strategy,
                max_new_tokens=max_new_tokens,
                stop_tokens=stops,
                compare=compare,
                repeats=repeats,
                prefilled=lambda row: reading.update(),
                progress=decoding.update,
            )
            results.append(result)
            if sink is not None:
                _write(sink, loaded.tokenizer, part, result.outputs)
            differences += _differences(loaded.target, part, result)
    plain = [result.plain_trace for result in results if result.plain_trace]
    compared = sum(len(row) for result in results for row in result.plain_outputs or ())
    draft = loaded.draft
    measurement = summarise(
        merge([result.trace for result in results]),
        merge(plain) if plain else None,
        workload=Workload(min(batch_size, len(prompts)), max(len(p.tokens) for p in prompts), max_new_tokens),
        strategy=strategy,
        hardware=hardware if loaded.target.device.type == "cuda" else CPU,
        target=fingerprint(loaded.target.config),
        draft=fingerprint(draft.config) if draft else None,
        outputs_identical=not differences if compare else None,
        tokens_compared=compared,
        prefill_s=sum(result.prefill_s for result in results),
        device=loaded.target.device.type,
    )
    return Execution(measurement, tuple(differences))


def _write(sink: IO[str], tokenizer: Tokenizer, prompts: Sequence[Prompt], outputs: Sequence[Sequence[int]]) -> None:
    for prompt, tokens in zip(prompts, outputs, strict=True):
        record = {"id": prompt.id, "text": tokenizer.decode(list(tokens)), "num_tokens": len(tokens)}
        sink.write(json.dumps(record, ensure_ascii=False) + "\n")
    sink.flush()


def _differences(model: Transformer, prompts: Sequence[Prompt], result: Result) -> list[Difference]:
    """Where a batch's output departs from plain decoding, row by row, and by how much the model itself minds."""
    if result.plain_outputs is None:
        return []
    found = []
    for prompt, output, plain in zip(prompts, result.outputs, result.plain_outputs, strict=True):
        place = first_difference([output], [plain])
        if place is None:
            continue
        at, nats = place[1], float("inf")
        if at < min(len(output), len(plain)):
            nats = log_probability_gap(model, [*prompt.tokens, *plain[:at]], output[at])
        gap = f"its token is {nats:.2g} nats less likely than the model's favourite"
        found.append(Difference(f"prompt {prompt.id} differs from plain decoding at new token {at}: {gap}", nats < NEAR_TIE_NATS))
    return found


@contextmanager
def _bar(total: int, title: str, unit: str) -> Iterator[Any]:
    with tqdm(total=total, desc=title, unit=unit, leave=False, disable=None) as bar:
        yield bar


def document(execution: Execution, plan: Plan) -> dict[str, Any]:
    """The outcome as `--json` prints it: what was predicted and what was measured, and whether the two can be compared."""
    predicted = plan.prediction.model_dump(exclude={"breakdown", "bound"})
    predicted["predicted_throughput_tokens_per_s"] = plan.workload.batch_size / predicted["predicted_speculative_tpot_s"]
    measurement = execution.measurement
    comparable = measurement.hardware == plan.hardware.name and _near(plan.workload, measurement.workload)
    differences = [asdict(difference) for difference in execution.differences]
    extra = {"comparable": comparable, "planned_for": plan.hardware.name, "differences": differences}
    return {**predicted, **asdict(measurement), **extra}


def _near(planned: Workload, seen: dict[str, Any]) -> bool:
    """Same batch, and contexts within a thirty-second: prompts are what they are."""
    return bool(seen["batch_size"] == planned.batch_size and abs(seen["context_len"] / planned.context_len - 1) <= 1 / 32)
