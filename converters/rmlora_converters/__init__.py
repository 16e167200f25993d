"""Turns low-rank updates into weights and graphs, without torch.

Start with :mod:`~rmlora_converters.delta` (the update of one module) and :mod:`~rmlora_converters.rounding` (what a cast
loses of it). Merging into a checkpoint is :mod:`~rmlora_converters.merge_plan`, then
:mod:`~rmlora_converters.checkpoint_merge` with its two writers, :mod:`~rmlora_converters.shards` and
:mod:`~rmlora_converters.side_files`. New adapters are made from others by :mod:`~rmlora_converters.mix` and
:mod:`~rmlora_converters.compress`, which both use :mod:`~rmlora_converters.rebuild`. ONNX graphs come last, in
:mod:`rmlora_converters.graph`.
"""
