"""Downloads of files from URLs that callers name, with checks of the addresses.

May import ``uploads``, ``config``, ``errors`` and the server's ``responses`` and ``state``, and no route.
"""
