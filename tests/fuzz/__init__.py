"""Tests of the fuzz command and, with a few inputs each, of every reader it knows."""
