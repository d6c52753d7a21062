"""What people, drivers and torch call a machine, taken apart: `NVIDIA GeForce RTX 4090`, `rtx4090` and `4090` are one name."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Words that tell nothing apart: vendors, brands, kinds of memory. Longer ones first.
_NOISE = re.compile(
    r"nvidia|geforce|amd|[dh]gx|macstudio|macbookpro|macbookair|macmini|radeon|instinct|intel|tesla|apple|google|aws|graphics|gpu|rtx|gtx|rx|arc(?!h)|generation|edition|blackwell"
    r"|hbm\d?e?|lpddr\dx?|gddr\dx?|unified|unifiedmemory"
)
_FORM = re.compile(r"(sxm)\d?|(pcie)|(nvl)(?!\d)|(oam)|(server)|(workstation)|(maxq)")
_MEMORY = re.compile(r"(?<!\d)(?:(\d+)[\s-]*gi?b|(?<![a-z])(\d{2,3})g)\b")
_CORES = re.compile(r"(\d+)[\s-]*(?:gpu[\s-]*)?cores?\b")
_MARKS = re.compile(r"\((?:r|tm|c)\)|[®™©]")

_BOTH = re.compile(r"(mi250x) / mi250\b")  # one name of the driver for both


@dataclass(frozen=True)
class MachineName:
    """A name, taken apart.

    Attributes:
        text: All of it, lower case, without marks and separators.
        key: Without vendor, brand, form factor, memory and number of cores.
        forms: Form factors in it: `sxm`, `pcie`, `nvl`, `oam`, `server`, `workstation`, `maxq`, and numbers of cores.
        memory_gb: Memory size in it. [GB]
    """

    text: str
    key: str
    forms: frozenset[str]
    memory_gb: int | None

    @classmethod
    def parse(cls, name: str) -> MachineName:
        """Take a name apart."""
        words = (
            _BOTH.sub(r"\1", _MARKS.sub("", name.lower())).replace("_", "-").replace("mobile", "laptop").replace("max-q", "maxq")
        )
        text = _compact(words)
        memory = _MEMORY.search(words)
        words = _MEMORY.sub(" ", words)
        cores = _CORES.search(words)
        rest = _compact(_CORES.sub(" ", words))
        forms = {next(part for part in found.groups() if part) for found in _FORM.finditer(rest)}
        forms |= {f"{cores[1]}core"} if cores else set()
        key = _NOISE.sub("", _FORM.sub("", rest))
        return cls(text, key, frozenset(forms), int(memory[1] or memory[2]) if memory else None)


def _compact(words: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", words)
