"""Passes that change a graph in place, one per file.

Read :mod:`~rmlora_converters.graph.passes.tape` and :mod:`~rmlora_converters.graph.passes.rewire` first: passes make nodes
with the former and connect them with the latter. Before branches: ``open_attention`` and ``open_layer_norm`` split fused
operators. Branches: ``insert_branches``, with ``branch_nodes`` and ``batch_axis``. On a graph with branches, when it
is opened: ``gather_adapters``, ``base_head`` and ``specialize``. Without branches: ``merge_weights``, with
``replace_head``. Embeddings: ``pooling``.
"""
