"""Running one graph with any number of adapters: which are in memory, which row uses which, and what comes out."""

from rmlora_deploy.runtime.adapters.adapter_ref import AdapterChoice, AdapterKey, AdapterRef
from rmlora_deploy.runtime.session import AdapterSession

__all__ = ["AdapterChoice", "AdapterKey", "AdapterRef", "AdapterSession"]
