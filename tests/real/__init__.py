"""Tests on the real models and data."""
