"""The probes of ``gpu_acceptance.py``. Each probe is a function that runs in a process of its own and records rows."""
