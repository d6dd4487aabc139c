"""Who speaks when: segmentation, embeddings, clustering, known voices, and the speakers of words."""
