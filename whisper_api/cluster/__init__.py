"""Jobs on a Ray cluster: the front stays one process, and engines run on other machines.

:mod:`executor` is what ``jobs`` runs on. It starts a process, :mod:`driver`, which is the driver in Ray's words: Ray
ends the process of a driver that has lost its cluster for a minute, so the front must not be one. The driver keeps an
:mod:`actor` for each GPU (:mod:`fleet`, :mod:`keeper`) and gives each job to one (:mod:`placement`, :mod:`runs`).
Imported only when ``WHISPER_EXECUTOR`` is ``ray``. Ray itself (the extra ``cluster``) is imported by the driver and by
Ray's own processes only. May import ``jobs`` and what ``jobs`` may import.
"""
