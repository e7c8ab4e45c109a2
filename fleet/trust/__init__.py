"""Who may tell a device what to run: TUF metadata, the director's assignments, and how both are verified."""
