"""The program on the device: enrols, updates, proves, serves inference, reports."""
