"""Diarization: segmentation, speaker embeddings, clustering, known speakers, and the speakers of words."""
