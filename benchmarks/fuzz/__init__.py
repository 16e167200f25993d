"""Damaged and hostile files for every reader of the toolkit: none may end in a traceback, a crash, a hang or 1 GB of memory.

Read :mod:`~benchmarks.fuzz.readers` (what is read, and how), then :mod:`~benchmarks.fuzz.campaign` (children with limits).
``python -m benchmarks.fuzz --help`` says how to run it.
"""
