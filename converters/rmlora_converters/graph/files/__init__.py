"""Reads and writes ONNX models and ``.onnx_adapter`` files.

Read :mod:`~rmlora_converters.graph.files.model_file`, then :mod:`~rmlora_converters.graph.files.lazy_tensor` (weights
computed while they are written). :mod:`~rmlora_converters.graph.files.onnx_adapter` reads into memory from
:mod:`~rmlora_converters.graph.files.buffer_pool`.
"""
