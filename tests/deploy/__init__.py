"""Tests of the package rmlora_deploy."""
