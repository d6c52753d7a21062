"""Safe YAML of the kind that JSON can hold: no aliases, no tags, no duplicate keys, limited size and nesting.

Dates stay text. Plain YAML would silently keep the last of two equal keys, and a few aliases can stand for gigabytes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import yaml

from .errors import bad
from .limits import MAX_DEPTH, MAX_DIGITS, MAX_TEXT_LENGTH, MAX_VALUES, check_document

if TYPE_CHECKING:
    from yaml import SafeLoader
else:  # libyaml, where PyYAML was built with it: ten times as fast
    SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_KEPT_TAGS = [f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float")]


class _PlainLoader(SafeLoader):
    """Resolves null, booleans and numbers; everything else is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as in the base class)
        first: [pair for pair in pairs if pair[0] in _KEPT_TAGS] for first, pairs in SafeLoader.yaml_implicit_resolvers.items()
    }


def _error(problem: str, mark: yaml.Mark | None) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _unique_mapping(loader: Any, node: yaml.MappingNode) -> dict[Hashable, object]:
    found: dict[Hashable, object] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _error("a key that is no text", key_node.start_mark)
        key = loader.construct_object(key_node, deep=True)
        if key in found:
            raise _error(f"the key {str(key)[:80]!r} is given twice", node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


def _number(loader: Any, node: yaml.ScalarNode) -> object:
    """The number, or its text if it cannot be read: what checks the document names the key."""
    read = loader.construct_yaml_int if node.tag.endswith("int") else loader.construct_yaml_float
    try:
        return read(node) if len(node.value) <= MAX_DIGITS else node.value
    except (ValueError, OverflowError):
        return node.value


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


_PlainLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
_PlainLoader.add_constructor("tag:yaml.org,2002:int", _number)
_PlainLoader.add_constructor("tag:yaml.org,2002:float", _number)


def load_mapping(text: str, where: str, what: str) -> dict[str, object]:
    """Parse a YAML text that must be a mapping with text keys.

    Args:
        text: Content of the file.
        where: The file, for error messages.
        what: What the file should be, for error messages.

    Raises:
        InputError: The text is not YAML, repeats a key, has an alias or a tag, is beyond the limits of `base.limits`, or is
            not a mapping with text keys.
    """
    try:
        _check_events(text, where)
        raw = yaml.load(text, Loader=_PlainLoader)
    except yaml.MarkedYAMLError as error:
        place = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}"
        raise bad(where, place, f"{what} in YAML", error.problem) from None
    except yaml.YAMLError as error:
        raise bad(where, "", f"{what} in YAML", error) from None
    if not isinstance(raw, dict):
        raise bad(where, "", what, type(raw).__name__)
    check_document(raw, where)
    return raw


def load_shipped(text: str) -> dict[str, Any]:
    """Parse a YAML mapping of this package; tests check them all with `load_mapping`, so that a start does not have to."""
    found: dict[str, Any] = yaml.load(text, Loader=_PlainLoader)
    return found


def render_yaml(document: object) -> str:
    """Render a document as YAML that `load_mapping` reads: keys in their order, no aliases."""
    text: str = yaml.dump(document, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def _check_events(text: str, where: str) -> None:
    """Refuse what would cost time or memory before anything is built."""
    depth = 0
    for number, (key, event) in enumerate(_with_keys(yaml.parse(text, Loader=SafeLoader))):
        line = event.start_mark.line + 1 if event.start_mark else 0
        place = f"line {line}" + (f": {key}" if key else "")
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            raise bad(where, place, "YAML without anchors and aliases", repr(event.anchor))
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise bad(where, place, "YAML without tags", repr(event.tag))
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_TEXT_LENGTH:
            raise bad(where, place, f"a text of at most {MAX_TEXT_LENGTH:,} characters", f"{len(event.value):,}")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise bad(where, place, f"at most {MAX_DEPTH} levels of nesting", "more")
        if number > MAX_VALUES:
            raise bad(where, place, f"at most {MAX_VALUES:,} values", "more")


def _with_keys(events: Iterable[yaml.Event]) -> Iterator[tuple[str, yaml.Event]]:
    """Each event with the dotted path of keys and list indices that lead to it."""
    path: list[str | int | None] = []  # None: a mapping whose next key has not been seen
    mappings: list[bool] = []
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            path.pop(), mappings.pop()
        is_key = False
        if isinstance(event, yaml.NodeEvent) and path:
            is_key = mappings[-1] and path[-1] is None
            if is_key:
                path[-1] = str(getattr(event, "value", "?"))[:80]
            elif not mappings[-1]:
                path[-1] = path[-1] + 1 if isinstance(path[-1], int) else 0
        yield ".".join(str(part) for part in path[:MAX_DEPTH] if part is not None), event
        if isinstance(event, yaml.CollectionStartEvent):
            path.append(None)
            mappings.append(isinstance(event, yaml.MappingStartEvent))
        elif path and mappings[-1] and not is_key:
            path[-1] = None
