"""Tests of rmlora.training."""
