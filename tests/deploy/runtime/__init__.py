"""Tests of rmlora_deploy.runtime."""
