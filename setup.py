"""Build the C ring; everything else stands in pyproject.toml.

``MCHANNEL_RING=no`` leaves it out, for machines without a compiler: no shm://, all else works.
"""

import os

from setuptools import setup

setup(
    cffi_modules=[] if os.environ.get("MCHANNEL_RING") == "no" else ["native/build_ring.py:ffi"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # one abi3 wheel for every CPython
)
