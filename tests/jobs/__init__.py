"""Tests of the durable work."""
