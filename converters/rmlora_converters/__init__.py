"""From a low-rank update to weights and graphs, without torch."""
