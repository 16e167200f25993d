"""Puts a server under load, from another process or machine, and reports latency, throughput and errors."""
