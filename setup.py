"""Build the C ring, the matcher and the binding of Xen's libraries; everything else stands in pyproject.toml.

``MCHANNEL_RING=no`` leaves the C out, for machines without a compiler: no shm:// and no alerts, all else works.
"""

import os

from setuptools import Extension, setup

RING = os.environ.get("MCHANNEL_RING") != "no"


def extension(name: str, *sources: str) -> Extension:
    """Return an extension of the stable ABI."""
    return Extension(
        name,
        sources=[f"native/{source}" for source in sources],
        depends=["native/end.h", "native/match.h", "native/ring.h"],
        include_dirs=["native"],
        define_macros=[("Py_LIMITED_API", "0x030b0000")],
        py_limited_api=True,
        extra_compile_args=[
            "-std=c11",
            "-O3",
            "-fvisibility=hidden",
            "-Wall",
            "-Wextra",
            "-Wno-missing-field-initializers",
        ],
    )


QUICK = [
    extension("mchannel._frame", "frame.c"),
    extension("mchannel._quick", "quick.c", "end.c", "ring.c"),
    extension("mbroker.alerts._edges", "edges.c"),
]

setup(
    cffi_modules=[
        *(["native/build_ring.py:ffi", "native/build_match.py:ffi"] if RING else []),
        "native/build_xen.py:ffi",  # plain Python, and needs no compiler
    ],
    ext_modules=QUICK if RING else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # one abi3 wheel for every CPython
)
