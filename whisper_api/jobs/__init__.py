"""Durable jobs: they survive a restart of the process.

:mod:`service` is the only entrance; the server uses its methods alone. :mod:`queue` and :mod:`worker` run jobs on an
:mod:`executor`, and :mod:`events` reports what they do. May import ``engine``, ``store``, ``access`` and the
formats; it knows no HTTP.
"""
