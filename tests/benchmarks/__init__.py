"""The benchmarks' own code: no test here measures time."""
