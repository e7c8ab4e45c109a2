"""The update machine: one transition table over frozen data. It does no I/O and knows no clock."""
