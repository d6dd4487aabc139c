"""Transcription: audio in, :class:`~whisper_api.schema.Transcript` out.

:mod:`engine` is the entrance and :mod:`pipeline` calls the stages. The folders ``audio``, ``whisper``, ``align`` and
``diarize`` hold the stages, ``models`` the model files, ``worker`` the devices and batches. May import
``schema``, ``errors``, ``config``, ``time_order`` and ``word_spacing``; it knows no jobs and no HTTP.
"""

from whisper_api.engine.worker.idle_cores import let_threads_sleep, share_device_memory

# Before any stage imports torch.
share_device_memory()
let_threads_sleep()
