"""Releases, whose they are, and how their bytes are kept and handed out."""
