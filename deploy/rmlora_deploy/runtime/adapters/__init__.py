"""Adapters in memory: which are registered, which are cached, where their arrays are."""
