"""Keys with their roles, scopes and expiry: they decide which callers the server accepts, and what these may do.

:mod:`keys` creates, lists, changes, rotates, revokes and checks keys, by the rules in :mod:`key_rules`. May import
``store``, ``schema`` and ``errors``; it knows no HTTP.
"""
