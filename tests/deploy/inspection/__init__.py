"""Tests of rmlora_deploy.inspection."""
