"""Running one graph with any number of adapters: which are in memory, which row uses which, what comes back."""

from deploy.runtime.requests import RowAdapter
from deploy.runtime.session import AdapterSession

__all__ = ["AdapterSession", "RowAdapter"]
