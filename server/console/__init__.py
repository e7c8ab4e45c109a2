"""The console: server-rendered pages that answer what an operator asks, and the forms that act."""
