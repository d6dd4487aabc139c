"""Requests that wait for the end of a job, or for its events."""
