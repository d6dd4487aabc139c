"""Models on disk and in memory: the catalogue, downloads, checks, and the cache of resident models.

May import the engine's ``worker`` and ``errors``, and no stage.
"""
