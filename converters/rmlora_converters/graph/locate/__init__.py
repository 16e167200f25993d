"""Finding a module in a graph: its weight, the nodes that use it, and the values around them."""
