"""Diarization: segmentation, speaker embeddings, clustering, known speakers, and the speaker of each word.

May import the engine's ``context``, ``audio``, ``models`` and ``worker``, and no other stage.
"""
