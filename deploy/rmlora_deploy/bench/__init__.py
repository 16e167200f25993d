"""Measuring a bundle: contestants in processes of their own, on the same cores, in alternating order."""
