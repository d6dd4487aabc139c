"""Responses: problem documents, results, and responses that notice whether they were delivered.

May import ``jobs``, ``formats``, ``schema`` and the server's ``operations``, ``realtime`` and ``state``, and no route.
"""
