"""Training, from data files to a finished adapter package (needs torch).

:func:`rmlora.training.run.train` calls the other modules in the order: data, lora_layers, arguments, resume, features, fit,
trained_package.
"""
