"""Benchmarks: what a message costs, and how long a violation takes to become an action."""
