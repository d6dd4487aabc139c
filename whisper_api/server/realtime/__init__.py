"""Requests that wait for the end of a job or stream its events.

May import ``jobs`` and the server's ``responses``, ``middleware`` and ``state``, and no route.
"""
