"""Tests of rmlora_deploy.bench."""
