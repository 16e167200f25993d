"""Proving that a bundle computes what PyTorch and PEFT compute."""
