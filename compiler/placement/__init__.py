"""Where the nodes of an artifact run, and what they take: rules as data, applied to plain facts. Pure."""
