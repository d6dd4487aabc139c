"""Tests of the client with a server that fails on demand."""
