"""SQLite: the database of jobs, results and keys. The only SQL. Imports schema, errors."""
