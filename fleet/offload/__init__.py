"""Hard requests: when a request is one, what the threshold guarantees, and where it should go."""
