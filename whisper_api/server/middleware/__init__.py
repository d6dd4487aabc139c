"""ASGI middleware around all routes: access log, proxies, upgrades, CORS, authentication.

May import the server's ``responses``, ``state`` and ``sockets``, and no route.
"""
