"""What the server does, on ports alone: no HTTP, no MQTT library."""
