"""Tests of the package rmlora."""
