"""How requests become jobs: forms, files, fields, idempotency keys."""
