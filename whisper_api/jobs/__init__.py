"""Durable work: jobs that survive the process. Knows no HTTP."""
