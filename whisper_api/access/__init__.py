"""Keys and their roles, which decide what callers may do, and the audit trail of what they did.

:mod:`keys` creates, lists, revokes and checks keys, :mod:`audit` records. May import ``store``, ``config``, ``schema``
and ``errors``; it knows no HTTP.
"""
