"""Hard requests: their queue, the cloud's pools, and what became of them."""
