"""The fields, bodies and errors of the routes under ``/v1``, as OpenAI's clients know them.

May import ``jobs``, the engine's names of models and languages, and the server's ``uploads``, ``responses`` and
``realtime``; imports no route.
"""
