"""Workers: each is one contestant's process, in our environment or in a peer's. Those of peers import only the peer."""
