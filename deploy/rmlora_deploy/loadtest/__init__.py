"""Putting a server under load, from another process or machine, and saying what it did."""
