"""Tests of the package rmlora_converters."""
