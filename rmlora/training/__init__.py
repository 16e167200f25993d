"""Training an adapter from files to a package: settings, data, features, resumption, the run (needs torch)."""
