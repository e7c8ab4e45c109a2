"""What devices tell: taken in, reconciled with what they shall run, and counted."""
