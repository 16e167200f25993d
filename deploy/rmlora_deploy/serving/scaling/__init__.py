"""The server on Ray Serve: the same application in any number of replicas.

A request comes through Ray's proxy to an *ingress*, which only reads which adapter it is for and forwards it unchanged to
a *replica* that has used this adapter lately. A replica is the whole single-machine server. It has the tokenizer, queue,
runner and routes of one release, so a request is never split between two releases. Adapters loaded and unloaded at run
time are listed in the *adapter state*: one actor, the *coordinator*, holds it, and the *watcher* in every replica takes
over its changes.

======================= ==================================================================================
running                 ``replica`` and ``ingress``; ``asgi`` carries a request from one to the other;
                        ``metrics_aggregation`` adds up the figures of all replicas
loading and unloading   ``adapter_state``, ``coordinator``, ``watcher``, ``replica_registry``
starting                ``launch`` (from command line options), ``application`` (what is served, at which
                        scale), ``deployments`` (the same for Ray Serve), then ``cluster`` (run it) or
                        ``config_file`` (write it for ``serve deploy``)
======================= ==================================================================================
"""
