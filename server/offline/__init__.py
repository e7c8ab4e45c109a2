"""Keys that people keep off the server, in files or in hardware, and the folder in which they sign."""
