"""Who may call the server: keys and their roles. Imports store."""
