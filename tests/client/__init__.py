"""The client, against a server that fails when it is told to."""
