"""The REST API. Only this folder knows HTTP.

:mod:`app` builds the application and has the table of routes; :mod:`run` listens and serves. ``routes`` has a module
for each resource, and the other folders hold what the routes share. May import every folder but ``client`` and
``cli``; it reads and changes jobs only by the methods of the job service.
"""
