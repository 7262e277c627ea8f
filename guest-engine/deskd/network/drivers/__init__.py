"""How containers come into networks, a module for each kind of network."""
