"""Tests of rmlora_deploy.verification."""
