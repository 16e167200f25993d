"""Asking a bundle: labels for inputs, or vectors for texts."""
