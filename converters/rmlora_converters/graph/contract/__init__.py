"""What a graph with branches takes for its adapters: the contract, and the arrays that fulfill it."""
