"""The server, tested over a real socket."""
