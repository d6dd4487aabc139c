"""Durable work: jobs that survive the process. ``service.py`` is the one door to them. Knows no HTTP."""
