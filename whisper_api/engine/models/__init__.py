"""Models on the disk and in memory: the catalogue, downloads, checks, and the cache of resident models."""
