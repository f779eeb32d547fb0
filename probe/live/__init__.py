"""A model in a process of its own that reads what is typed in the explorer. Imported by nobody: see `worker`."""
