"""From a file to samples: containers, tracks, decoding, time stamps, memory and mel features.

May import ``schema`` and ``errors``, and no other part of the engine.
"""
