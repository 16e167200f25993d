"""Tests of rmlora_deploy.loadtest."""
