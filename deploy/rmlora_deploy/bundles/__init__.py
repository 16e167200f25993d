"""Bundles on disk: the directory that an export writes, its manifest, adapters and reference outputs."""
