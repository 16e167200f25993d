"""The contract between a graph with branches and its adapters.

:mod:`~rmlora_converters.graph.contract.lora_inputs` defines the inputs that the graph takes;
:mod:`~rmlora_converters.graph.contract.adapter_arrays` makes the arrays that an adapter feeds to them.
"""
