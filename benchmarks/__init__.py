"""Measurements on real models and data; each module is a command that writes benchmarks/results."""
