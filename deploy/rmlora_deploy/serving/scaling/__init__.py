"""The server on Ray Serve: the same application in any number of replicas.

Requests come through Ray's proxy to an *ingress*, which only reads which adapter is meant and hands the request, as it
came, to a *replica* that has used the adapter lately. A replica is the whole single-machine server: tokenizer, queue, graph and
routes are of one bundle, so no request is ever split between two versions. What was loaded and unloaded at run time stands
in a table that one actor, the *keeper*, keeps and that every replica follows.
"""
