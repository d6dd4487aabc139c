"""Devices and the threads that run models on them: fair queueing over jobs, batches, background tasks."""
