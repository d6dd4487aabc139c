"""Devices and the threads that run models on them: fair queueing over jobs, batches, background tasks.

May import ``errors`` and the cache in ``models``, and no stage: the stages pass their operations to the worker.
"""
