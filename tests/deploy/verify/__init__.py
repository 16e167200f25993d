"""Tests of rmlora_deploy.verify."""
