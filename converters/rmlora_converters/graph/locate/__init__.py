"""Finds the weight of a module in a graph, and the nodes that compute with it.

Read :mod:`~rmlora_converters.graph.locate.uses` (uses of a value), then
:mod:`~rmlora_converters.graph.locate.weights` (parameter to initializer),
:mod:`~rmlora_converters.graph.locate.targets` (everything that a set of adapters changes) and
:mod:`~rmlora_converters.graph.locate.consumers` (the nodes that compute with a weight).
"""
