"""Keys with their roles, scopes and expiry, which decide what callers may do, and the audit trail of what they did.

:mod:`keys` creates, lists, changes, rotates, revokes and checks keys, by the rules in :mod:`key_rules`; :mod:`audit`
records. May import ``store``, ``config``, ``schema`` and ``errors``; it knows no HTTP.
"""
