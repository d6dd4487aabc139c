"""Responses: problem documents, results, and responses that notice whether they were delivered.

May import ``jobs``, ``formats``, ``schema`` and the server's ``query`` and ``state``, and no route.
"""
