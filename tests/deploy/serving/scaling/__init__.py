"""Tests of rmlora_deploy.serving.scaling."""
