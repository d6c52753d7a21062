"""One measurement that another tool made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.base.json_types import Json

Document = dict[str, Json]


@dataclass(frozen=True)
class Measured:
    """What a tool measured, and of what; None is not known. The names are those of columns that `validate` reads.

    Attributes:
        source: The file.
        tool: What wrote it.
        model, gpu, engine, quant: What ran, where.
        num_gpus: GPUs that share it.
        draft: Draft kind; `none` for decoding without speculation.
        gamma: Draft tokens per round. [tokens]
        batch_size: Sequences decoded together.
        context_len: Mean tokens in the KV cache, per sequence. [tokens]
        query_len: Query tokens per sequence of a pass, where the step is that of a pass. [tokens]
        tokens_per_round: Bonus token included. [tokens]
        acceptance_by_position: Acceptance rate at each draft position, given that all earlier ones were accepted. [0-1]
        step_s: A decoding step or verification pass, sampling included. [s]
        tpot_s: Time per output token of a sequence. [s]
        ttft_s: Time to first token. [s]
        samples: Measurements that the medians are of.
    """

    source: str
    tool: str
    model: str | None = None
    gpu: str | None = None
    engine: str | None = None
    quant: str | None = None
    num_gpus: int | None = None
    draft: str | None = None
    gamma: int | None = None
    batch_size: int | None = None
    context_len: int | None = None
    query_len: int | None = None
    tokens_per_round: float | None = None
    acceptance_by_position: tuple[float, ...] = ()
    step_s: float | None = None
    tpot_s: float | None = None
    ttft_s: float | None = None
    samples: int | None = None

    def cells(self) -> dict[str, str]:
        """The measurement as cells of a CSV file."""
        return {name: _cell(value) for name, value in asdict(self).items()}


def _cell(value: object) -> str:
    if isinstance(value, tuple):
        return ";".join(f"{one:.4g}" for one in value)
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def number(document: Document, key: str, where: str, tool: str, *, least: float = 0.0) -> float:
    """A number of a document.

    Args:
        document: The document.
        key: Its key.
        where: The file, for error messages.
        tool: What wrote it, for error messages.
        least: The smallest that is possible.

    Raises:
        InputError: There is none, or it is too small.
    """
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
        found = "nothing: is it of another version?" if key not in document else repr(value)
        raise bad(where, key, f"a number of {tool}, at least {least:g}", found)
    return float(value)


def numbers(document: Document, key: str) -> list[float]:
    """The numbers of a list in a document; empty if there is no such list."""
    value = document.get(key)
    if not isinstance(value, list | tuple):
        return []
    return [float(one) for one in value if isinstance(one, int | float) and not isinstance(one, bool)]


def text(document: Document, key: str) -> str | None:
    """A text of a document; None if there is none."""
    value = document.get(key)
    return value if isinstance(value, str) and value and value != "None" else None


def conditional(shares: list[float]) -> tuple[float, ...]:
    """Acceptance rates given that all earlier draft tokens were accepted, from the share of rounds that got to each position."""
    rates, before = list[float](), 1.0
    for share in shares:
        if not 0 < share <= before * (1 + 1e-9):
            break
        rates.append(min(share / before, 1.0))
        before = share
    return tuple(rates)


Reader = Callable[[str, str], list[Measured]]  # (path, its text)
