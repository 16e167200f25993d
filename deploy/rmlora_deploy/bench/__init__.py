"""Measuring a bundle: each contestant in its own process, on the same cores, in alternating order."""
