"""Changes ONNX graphs from any exporter, without torch: merges adapters into weights, or adds branches for them.

Read :mod:`~rmlora_converters.graph.files` first (models and adapters on disk), then
:mod:`~rmlora_converters.graph.locate` (which node computes with which weight),
:mod:`~rmlora_converters.graph.contract` (the inputs of a graph with branches) and
:mod:`~rmlora_converters.graph.passes` (the changes). Each imports only those before it.
"""
