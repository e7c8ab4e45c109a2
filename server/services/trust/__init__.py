"""Signing: who holds which key, what is signed when, and taking over what others have signed."""
