"""Uploads: from a request's body to jobs.

The routes enter at :mod:`submitting`. :mod:`receiving` moves a body from the socket to a reader, one for each media
type (:mod:`multipart`, :mod:`plain_bodies`, :mod:`json_reader`). The readers fill an :mod:`incoming` form, and
:mod:`storing` writes its files. :mod:`forms` turns the form's fields into options. Imports no route.
"""
