"""Random changes to files: of their trees where they have one, of their bytes always."""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any, TypeAlias

import yaml

from . import nasty

Tree: TypeAlias = Any  # what JSON and YAML hold, and marks that stand for raw text
Slot: TypeAlias = tuple[Any, Any]  # a container, and the key or index of a node in it


@dataclass
class Raws:
    """Texts that a renderer could not write, such as double keys or numbers of 5,000 digits; marks stand for them in the tree."""

    texts: dict[str, str] = field(default_factory=dict)

    def mark(self, text: str) -> str:
        mark = f"zq{len(self.texts)}qz"
        self.texts[mark] = text
        return mark

    def fill(self, rendered: str) -> str:
        for mark, text in self.texts.items():
            rendered = rendered.replace(f'"{mark}"', text).replace(mark, text)
        return rendered


def mutated(text: bytes, form: str, random: Random) -> bytes:
    """The file after one to three changes; `form` is json, yaml, jsonl, csv or text."""
    if random.random() < 0.04:
        return nasty.whole_file(random)
    changes = random.choice((1, 1, 1, 2, 3))
    if form in _STRUCTURED and random.random() < 0.75:
        return _STRUCTURED[form](text, changes, random)
    for _ in range(changes):
        text = _bytes_changed(text, random)
    return text


# Trees


def _json_changed(text: bytes, changes: int, random: Random) -> bytes:
    tree, raws = json.loads(text), Raws()
    tree = _tree_changed(tree, changes, nasty.JSON_VALUES, raws, random)
    return _encode(raws.fill(json.dumps(tree, ensure_ascii=random.random() < 0.8, indent=random.choice((None, 1)))))


def _yaml_changed(text: bytes, changes: int, random: Random) -> bytes:
    tree, raws = _yaml_tree(text), Raws()
    tree = _tree_changed(tree, changes, nasty.YAML_VALUES, raws, random)
    return _encode(raws.fill(yaml.dump(tree, Dumper=_DUMPER, sort_keys=False, allow_unicode=random.random() < 0.5)))


_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # where there is one in C, it is much faster


@cache
def _yaml_tree(text: bytes) -> Tree:
    return yaml.safe_load(text)


def _jsonl_changed(text: bytes, changes: int, random: Random) -> bytes:
    lines = text.split(b"\n")
    for _ in range(changes):
        full = [number for number, line in enumerate(lines) if line.strip()]
        number = random.choice(full)
        try:
            lines[number] = _json_changed(lines[number], 1, random).replace(b"\n", b" ")
        except (ValueError, RecursionError):  # broken by an earlier change
            lines[number] = _bytes_changed(lines[number], random)
        if random.random() < 0.1:
            lines.insert(random.randrange(len(lines) + 1), random.choice(lines))
    return b"\n".join(lines)


def _tree_changed(tree: Tree, changes: int, values: Sequence[str], raws: Raws, random: Random) -> Tree:
    root = [copy.deepcopy(tree)]
    for _ in range(changes):
        slots = list(_slots(root))
        if not slots:  # an earlier change deleted everything
            break
        parent, key = random.choice(slots)
        random.choice(_TREE_CHANGES)(parent, key, slots, values, raws, random)
    return root[0] if root else None


def _slots(node: Tree) -> Iterator[Slot]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield node, key
        yield from _slots(value)


def _replace(parent: Any, key: Any, slots: list[Slot], values: Sequence[str], raws: Raws, random: Random) -> None:
    parent[key] = raws.mark(random.choice(values))


def _rescale(parent: Any, key: Any, slots: list[Slot], values: Sequence[str], raws: Raws, random: Random) -> None:
    """Another number of the same type, so that it gets past the checks of type."""
    numbers = [(p, k) for p, k in slots if isinstance(p[k], int | float) and not isinstance(p[k], bool) and abs(p[k]) < 1e200]
    if numbers:
        parent, key = random.choice(numbers)
        value = parent[key]
        factors = (0, -1, 2, 7, 1000, 10**6, 10**12, 10**18, 10**30, 10**100)
        if isinstance(value, int):
            parent[key] = random.choice((value * random.choice(factors), value + 1, value - 1, float(value), value + 0.5))
        else:
            parent[key] = random.choice((value * float(random.choice(factors)), value * 1e-12, value * 1e-300, round(value)))


def _delete(parent: Any, key: Any, slots: list[Slot], values: Sequence[str], raws: Raws, random: Random) -> None:
    del parent[key]


def _rename(parent: Any, key: Any, slots: list[Slot], values: Sequence[str], raws: Raws, random: Random) -> None:
    if isinstance(parent, dict):
        name = random.choice((*nasty.TEXTS, *("k" * length for length in (300, 70_000)), f"{key}x", "schema_version"))
        value = parent.pop(key)
        parent[raws.mark(json.dumps(name))] = value


def _double(parent: Any, key: Any, slots: list[Slot], values: Sequence[str], raws: Raws, random: Random) -> None:
    """The same key twice, or an item many times."""
    if isinstance(parent, dict):
        parent[raws.mark(json.dumps(str(key)))] = random.choice((parent[key], None, raws.mark(random.choice(values))))
    else:
        parent[key:key] = [parent[key]] * random.choice((1, 2, 100, 3000))


def _add(parent: Any, key: Any, slots: list[Slot], values: Sequence[str], raws: Raws, random: Random) -> None:
    if isinstance(parent, dict):
        parent[raws.mark(json.dumps(random.choice(("extra", *nasty.TEXTS))))] = raws.mark(random.choice(values))


def _wrap(parent: Any, key: Any, slots: list[Slot], values: Sequence[str], raws: Raws, random: Random) -> None:
    value = parent[key]
    unwrapped = (
        next(iter(value.values() if isinstance(value, dict) else value), None) if isinstance(value, dict | list) else str(value)
    )
    parent[key] = random.choice(([value], {"a": value}, [value, value], unwrapped))


def _graft(parent: Any, key: Any, slots: list[Slot], values: Sequence[str], raws: Raws, random: Random) -> None:
    """The value of another node."""
    other, place = random.choice(slots)
    parent[key] = copy.deepcopy(other[place])


def _spoil(parent: Any, key: Any, slots: list[Slot], values: Sequence[str], raws: Raws, random: Random) -> None:
    """Something nasty within a text."""
    texts = [(p, k) for p, k in slots if isinstance(p[k], str) and p[k] not in raws.texts]
    if texts:
        parent, key = random.choice(texts)
        place = random.randrange(len(parent[key]) + 1)
        parent[key] = raws.mark(json.dumps(parent[key][:place] + random.choice(nasty.TEXTS) + parent[key][place:]))


def _bury(parent: Any, key: Any, slots: list[Slot], values: Sequence[str], raws: Raws, random: Random) -> None:
    parent[key] = raws.mark(nasty.deep(random.choice((30, 300, 1100, 20_000))))


_TREE_CHANGES = (
    _replace,
    _replace,
    _replace,
    _rescale,
    _rescale,
    _rescale,
    _delete,
    _rename,
    _double,
    _add,
    _wrap,
    _graft,
    _spoil,
    _spoil,
    _bury,
)


# Tables


def _csv_changed(text: bytes, changes: int, random: Random) -> bytes:
    rows = list(csv.reader(io.StringIO(text.decode())))
    for _ in range(changes):
        number = random.choice((0, random.randrange(len(rows)), len(rows) - 1))
        row = rows[number]
        place = random.randrange(len(row)) if row else 0
        change = random.randrange(6)
        if change <= 2 and row:
            row[place] = random.choice((*nasty.TEXTS, *nasty.NUMBERS))
        elif change == 3 and row:
            del row[place]
        elif change == 4:
            row[place:place] = [random.choice((*nasty.TEXTS, *rows[0]))] * random.choice((1, 1, 50))
        else:
            rows.insert(random.randrange(len(rows) + 1), random.choice(([], row, row[:1], row * 2)))
    out = io.StringIO()
    csv.writer(
        out, quoting=random.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)), lineterminator=random.choice(("\n", "\r\n"))
    ).writerows(rows)
    return _encode(out.getvalue())


# Bytes


def _bytes_changed(text: bytes, random: Random) -> bytes:
    start, stop = sorted(random.randrange(len(text) + 1) for _ in range(2))
    stop = min(stop, start + random.choice((1, 4, 50, 10_000)))
    hostile = _encode(random.choice((*nasty.TEXTS, *nasty.NUMBERS)))
    lines = text.split(b"\n")
    random.shuffle(lines)
    return random.choice(
        (
            text[:start],
            text[:start] + text[stop:],
            text[:stop] + text[start:],
            text[:start] + hostile + text[start:],
            text[:start] + hostile + text[stop:],
            text[:start] + bytes([random.randrange(256)]) + text[start + 1 :],
            text[:start] + bytes(b ^ 1 << random.randrange(8) for b in text[start:stop]) + text[stop:],
            text + text,
            b"\n".join(lines),
            text.replace(b"\n", random.choice((b"\r\n", b"\r", b"\n\n", b"\xe2\x80\xa8", b" "))),
            random.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\n", b"{", b"%")) + text,
            text.decode("utf-8", "replace").encode(random.choice(("utf-16", "utf-32", "utf-8-sig"))),
        )
    )


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


_STRUCTURED: dict[str, Callable[[bytes, int, Random], bytes]] = {
    "json": _json_changed,
    "yaml": _yaml_changed,
    "jsonl": _jsonl_changed,
    "csv": _csv_changed,
}
