"""Build the C ring; everything else stands in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["native/build_ring.py:ffi"])
