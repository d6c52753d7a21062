"""Values that break programs: as texts, as raw JSON and YAML, as whole files, as arguments and as Python expressions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random

TEXTS: Sequence[str] = (
    *("", " ", "\0", "\ud800", "\udcff", "\u2028", "\x85", "\n", "a\nb", "a\rb", "\t", "\x1b[31mred", "\x7f", "\ufeff"),
    "\u202eltr",
    *("x" * 300, "x" * 5000, "\N{GRINNING FACE}", "名前", "e\u0301", "A\u0300" * 200, "ſ", "İ"),
    *("$\\frac$", "$\\frac", "$x^$", "\\", '"', "'", "'''", "#", "# x", ": ", "- a", "%s", "{0.__class__}", "{", "[red]", "`x`"),
    *("$(touch created)", "`touch created`", "; touch created", "\ntouch created", "<script>alert(1)</script>", "</title>", "&lt;"),
    *("-1", "--help", "-", "nan", "inf", "1e400", "1e-400", "0x_", "1_0", "٣", "1" * 5000, "None", "true", "null", "~", "=", "<<"),
    *("../../etc/passwd", "/", ".", "/dev/null", "/dev/zero", "reference", "self", "none", "llama-3.1-8b", "h100-sxm"),
)
NUMBERS: Sequence[str] = (
    *("0", "-0.0", "-1", "1", "2", "3", "0.5", "-0.5", "1.5", "1e-320", "1e-9", "1.0e+30", "1e308", "-1e308", "1e400", "-1e400"),
    *("9007199254740993", "2147483648", "9223372036854775807", "9223372036854775808", "18446744073709551616"),
    *("1" + "0" * 30, "1" + "0" * 400, "9" * 5000, "NaN", "Infinity", "-Infinity", "0." + "1" * 400, "1e99999999999"),
)
CONSTANTS = ("null", "true", "false", "[]", "{}", "[[]]", "[null]", '{"": null}', '{"a": {"a": {"a": 1}}}')
JSON_VALUES = (*NUMBERS, *CONSTANTS, *(json.dumps(text) for text in TEXTS), '"\\ud83d"', "'x'", "undefined", "01", "1.", ".5", "+1")
YAML_VALUES = (
    *JSON_VALUES,
    *("2024-01-01", "2024-13-45", "2024-01-01T25:61:61Z", "0001-01-01 00:00:00 +23:59", "!!float abc", "!!int x", "!!int 0b2"),
    "0x_",
    *("!!timestamp x", "!!bool x", "!!binary x", "!!binary '=='", "!!null x", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]"),
    *("!!python/object/apply:os.mkdir [created]", "!!python/name:os.system", "!unknown x", "!<tag:x> y", "!!str 1", "!!seq {}"),
    *("*missing", "&a [*a]", "&a {a: *a}", ".inf", "-.inf", ".nan", "1_000", "_1", "0o17", "017", "1:30:00", "190:20:30.15", "1e5"),
    *("{[1, 2]: 3}", "{null: 1}", "{2024-01-01: 1}", "{1: 1, 1.0: 2, true: 3}", "{<<: 1}", "{<<: [{a: 1}, {b: 2}]}", "|\n   x"),
    ">-",
    *("@x", "%x", "\tx", "[1, 2", "{a: 1", '"\\x"', '"\\ud800"', '"\\UFFFFFFFF"', "? x", "? [1]\n: 2", "- - - 1", "x: y: z"),
)


def deep(depth: int) -> str:
    """Lists within lists, as JSON and as YAML."""
    return "[" * depth + "]" * depth


def laughs(levels: int, width: int) -> str:
    """YAML whose aliases stand for width^levels items."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def whole_file(random: Random) -> bytes:
    """A file that is wrong as a whole."""
    size = random.choice((40, 1200, 30_000))
    texts = (
        *("", " ", "\n\n", "null", "1", '"x"', "[]", "{}", "[[1]]", "\0", "\ufeff", "---\n---\n", "a: 1\na: 2\n"),
        "%YAML 9.9\n---\n",
        *(deep(size), '{"a":' * size, "{a: " * size, "- " * size, "? " * size, "&a " * size, "'" * size, '"' + "\\" * size),
        *(laughs(9, 9), laughs(30, 2), laughs(3, 40), "\n".join(f"k{n}: {n}" for n in range(size)), "k: " + "1" * size),
        "k: " + "_" * size,
        *("{" + ",".join(f'"k{n}":{n}' for n in range(size)) + "}", '{"k":"' + "x" * size + '"}', "," * size, '"\n' * size),
        "\r" * size,
    )
    return random.choice((*texts, *TEXTS)).encode("utf-8", "surrogatepass")


# What is given in Python, as source text. Numbers are either small or absurd: those in between may take long and be right.
EXPRESSIONS = (
    *("None", "True", "False", "0", "1", "-1", "2", "7", "64", "1.0", "1.5", "-0.0", "0.5", "1e-320", "1e308", "10**400"),
    *("-10**400", "10**18"),
    *("2**53", "2**63", "float('nan')", "float('inf')", "-float('inf')", "1j", "b'x'", "''", "[]", "()", "{}", "set()"),
    *("[1, 2]", "(1.5,)"),
    *("[[1], [2, 3]]", "{'a': 1}", "object()", "len", "int", "iter(())", "range(0)", "range(3)", "Path('.')"),
    *("Path('missing')", "Decimal('NaN')"),
    *("Decimal(3)", "Fraction(1, 3)", "np.int64(3)", "np.float64('nan')", "np.float32(0.5)", "np.array([1, 2])", "np.array(3)"),
    "np.array([])",
    *("np.array([0.5, np.nan])", "np.array([None])", "np.array(['x'])", "np.bool_(True)", "np.ones((2, 2))", "[None]", "['']"),
    "['self', 3]",
    *("'self'", "'ngram'", "'none'", "'llama-3.1-8b'", "'llama-3.2-1b'", "'h100-sxm'", "'cuda'", "'topk'", "'full'", "'int8'"),
    *("'fp8'", "'tpot'"),
    *("'throughput'", "'per_token'", "[0.5]", "[0.9, 0.8]", "[2.0]", "('snapkv', 'quest')", "'x' * 300", "'x\\ny'"),
    *("'\\ud800'", "'\\0'", "'1'"),
)
# What is typed: the operating system passes neither NUL nor surrogates that stand for no byte.
ARGUMENTS = (
    *(text for text in TEXTS if "\0" not in text and "\ud800" not in text),
    *(number for number in NUMBERS),
    *("4", "8", "32k", "2Ki", "1.5k", "1Gi", "0.5k", "1e3", "5ms", "1us", "0ms", "1e400s", "64,128", "1,", ",1"),
    *("1," * 3000 + "1", "0.9,0.8"),
    *("ngram", "eagle3", "mtp", "llama-3.2-1b", "full", "streaming_llm", "snapkv", "topk", "quest", "pq", "fp8", "int8"),
    *("int4", "mxfp4"),
    *("shared_kv_no_split", "per_token", "tpot", "throughput", "latency", "cost", "vllm", "sglang", "llama.cpp"),
    *("transformers", "0.10.0"),
    *("deepseek-v3", "gpt-oss-20b", "gemma-3-27b", "l40", "mi300x", "rtx-4090", "b200-sxm", "missing.yaml", "h100_sxm"),
)
