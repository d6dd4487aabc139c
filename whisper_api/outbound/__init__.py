"""Connections to addresses that callers name: to public addresses of other machines only.

:mod:`urls` checks a URL, :mod:`addresses` the addresses of its host, and :mod:`connecting` connects to an address that
was checked. May import ``errors`` only.
"""
