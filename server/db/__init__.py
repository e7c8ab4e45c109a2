"""Tables, their migrations, and sessions on SQLite or PostgreSQL."""
