"""Bind the matcher to Python: ``ffi`` builds ``mbroker.alerts._match`` (cffi API mode, stable ABI).

What a call does stands in match.h, whose declarations are read from there.
"""

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
PARTS = ["bag", "exact", "group", "image", "rule", "sample", "store", "stream", "timer", "window"]


def declarations(header: str) -> str:
    """Return what cffi can read of a header: no directives, but the values of its constants."""
    constants = re.findall(r"^#define (MATCH_[A-Z]+) ", header, re.MULTILINE)
    plain = re.sub(r"/\*.*?\*/|^#.*?$", "", header, flags=re.MULTILINE | re.DOTALL)
    return "\n".join(f"#define {name} ..." for name in constants) + plain


ffi = FFI()
ffi.cdef(declarations((HERE / "match.h").read_text()))
ffi.set_source(
    "mbroker.alerts._match",
    '#include "match.h"',
    sources=["native/match.c", *(f"native/match_{part}.c" for part in PARTS)],
    depends=["native/match.h", "native/match_core.h", "native/match_bag.h"],
    include_dirs=["native"],
    libraries=["m"],
    extra_compile_args=[
        "-std=c11",
        "-O3",
        "-ffp-contract=off",  # a * b + c rounds twice everywhere, or results would differ between machines
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-Wno-missing-field-initializers",
    ],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
