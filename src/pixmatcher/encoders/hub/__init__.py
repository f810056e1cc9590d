"""Downloads of models: the cache on this machine, and the client of the hub."""
