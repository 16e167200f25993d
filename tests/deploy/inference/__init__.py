"""Tests of rmlora_deploy.inference."""
