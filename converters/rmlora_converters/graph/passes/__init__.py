"""Changes to a graph: one pass per file, each in place."""
