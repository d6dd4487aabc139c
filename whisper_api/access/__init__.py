"""Keys and their roles: they decide which callers the server accepts.

:mod:`keys` creates, lists, revokes and checks keys. May import ``store``, ``schema`` and ``errors``; it knows no HTTP.
"""
