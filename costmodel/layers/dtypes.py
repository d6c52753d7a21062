"""Storage types of weights and caches, and the bytes of one element with its share of scales."""

from __future__ import annotations


def _grouped(bits: int, group: int, *, zero_point: bool = False) -> float:
    """Bytes per element of integers that share a 16-bit scale, and a zero point of their own width, per group."""
    return bits / 8 + (2 + (bits / 8 if zero_point else 0)) / group


# Types of ggml, by name: number in a GGUF file, elements of a block, bytes of a block with its scales. Source: `ggml.h` and the
# sizes in the package `gguf`.
GGML_TYPES = {
    "float32": (0, 1, 4), "float16": (1, 1, 2), "q4_0": (2, 32, 18), "q4_1": (3, 32, 20), "q5_0": (6, 32, 22), "q5_1": (7, 32, 24),
    "q8_0": (8, 32, 34), "q8_1": (9, 32, 40), "q2_k": (10, 256, 84), "q3_k": (11, 256, 110), "q4_k": (12, 256, 144),
    "q5_k": (13, 256, 176), "q6_k": (14, 256, 210), "q8_k": (15, 256, 292), "iq2_xxs": (16, 256, 66), "iq2_xs": (17, 256, 74),
    "iq3_xxs": (18, 256, 98), "iq1_s": (19, 256, 50), "iq4_nl": (20, 32, 18), "iq3_s": (21, 256, 110), "iq2_s": (22, 256, 82),
    "iq4_xs": (23, 256, 136), "int8": (24, 1, 1), "int16": (25, 1, 2), "int32": (26, 1, 4), "int64": (27, 1, 8),
    "float64": (28, 1, 8), "iq1_m": (29, 256, 56), "bfloat16": (30, 1, 2), "tq1_0": (34, 256, 54), "tq2_0": (35, 256, 66),
    "mxfp4": (39, 32, 17), "nvfp4": (40, 64, 36), "q1_0": (41, 128, 18),
}  # fmt: skip
GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)
INTEGER_BITS = (2, 3, 4, 5, 6, 8)
# Scales of fp8 and int8, one per tensor, row or block of 128 x 128, are less than 0.1 % and are left out.
BYTES_PER_ELEMENT = (
    {name: size / elements for name, (_, elements, size) in GGML_TYPES.items()}
    | {
        "float64": 8.0,
        "float32": 4.0,
        "bfloat16": 2.0,
        "float16": 2.0,
        "fp8": 1.0,
        "int8": 1.0,
        "int4": _grouped(4, 128),
        "mxfp4": 0.5 + 1 / 32,
        "mxfp6": 0.75 + 1 / 32,
        "mxfp8": 1 + 1 / 32,
        "nvfp4": 0.5 + 1 / 16,
        "nf4": 0.5 + 4 / 64,  # bitsandbytes: a float32 scale for 64 elements
        "nf4_nested": 0.5 + 1 / 64 + 4 / (64 * 256),  # the scales themselves in 8 bits
    }
    | {
        f"w{bits}g{group}{'z' if zero_point else ''}": _grouped(bits, group, zero_point=zero_point)
        for bits in INTEGER_BITS
        for group in GROUP_SIZES
        for zero_point in (False, True)
    }
)


def integer_dtype(bits: int, group: int | None, *, zero_point: bool) -> str | None:
    """Name of an integer type of so many bits with a scale per group; None if there is none.

    Args:
        bits: Bits per element.
        group: Elements that share a scale; None for one scale per row.
        zero_point: Whether each group has a zero point too.
    """
    if bits not in INTEGER_BITS:
        return None
    if group is None or group >= GROUP_SIZES[-1]:
        return "int8" if bits == 8 else f"w{bits}g{GROUP_SIZES[-1]}{'z' if zero_point else ''}"
    return f"w{bits}g{group}{'z' if zero_point else ''}" if group in GROUP_SIZES else None


def smaller(stored: str | None, default: str, wanted: str | None) -> str | None:
    """The wanted dtype, or the stored one if it is as small; None stands for the default."""
    if wanted is None or BYTES_PER_ELEMENT[stored or default] <= BYTES_PER_ELEMENT[wanted]:
        return stored
    return wanted
