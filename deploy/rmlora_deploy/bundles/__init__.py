"""Bundles on disk: the directory that leaves the toolkit, its manifest, its adapters and its reference outputs."""
