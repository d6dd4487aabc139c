"""Uploads: from a request's body to jobs.

The routes enter at :mod:`submitting`. :mod:`receiving` moves a body from the socket to a reader, one for each media
type (:mod:`multipart`, :mod:`plain_bodies`, :mod:`json_reader`). The readers fill an :mod:`incoming` form, and
:mod:`storing` writes its files. :mod:`forms` has the table of the form's fields and turns them into options.
:mod:`fetching` gets files from the URLs that callers name, with checks of the addresses. Imports no route.
"""
