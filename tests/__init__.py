"""Tests; tests/models.py holds the tiny models they share."""
