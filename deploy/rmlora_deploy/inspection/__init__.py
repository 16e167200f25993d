"""Describing an adapter or a bundle from its files, without torch."""
