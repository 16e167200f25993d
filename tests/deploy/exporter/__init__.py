"""Tests of rmlora_deploy.exporter."""
