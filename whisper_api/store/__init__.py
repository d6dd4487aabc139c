"""The SQLite database of jobs, results, keys and webhooks. No other folder contains SQL.

:mod:`database` has the connections and transactions, :mod:`jobs` the store that the other folders use. May import
``schema`` and ``errors``.
"""
