"""Tests of rmlora_deploy.cli."""
