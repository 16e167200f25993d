"""The quality study: does RM-LoRA generalize better than its peers, at which budget, on which data?

``study`` says what is compared, ``methods`` how each contestant is built, ``train_run`` carries out one run, ``campaign`` all
of them, and ``comparison`` and ``page`` turn the runs into docs/evidence.md.
"""
