"""Tests of rmlora_deploy.bundles."""
