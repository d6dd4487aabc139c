"""Keys and their roles: they decide which callers the server lets in. Imports store."""
