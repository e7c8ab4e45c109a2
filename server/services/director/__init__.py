"""The director: what each device shall run, signed and published."""
