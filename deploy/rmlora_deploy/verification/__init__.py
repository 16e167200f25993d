"""Comparing a bundle's outputs with those of PyTorch and PEFT."""
