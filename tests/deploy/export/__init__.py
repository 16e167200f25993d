"""Tests of rmlora_deploy.export."""
