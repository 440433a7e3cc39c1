"""Build the C ring and the binding of Xen's libraries; everything else stands in pyproject.toml.

``MCHANNEL_RING=no`` leaves it out, for machines without a compiler: no shm://, all else works.
"""

import os

from setuptools import setup

ring = [] if os.environ.get("MCHANNEL_RING") == "no" else ["native/build_ring.py:ffi"]

setup(
    cffi_modules=[*ring, "native/build_xen.py:ffi"],  # the second is plain Python, and needs no compiler
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # one abi3 wheel for every CPython
)
