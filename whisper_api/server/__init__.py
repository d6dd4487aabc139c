"""The REST API. HTTP only: what a job is, and what becomes of it, is known below."""
