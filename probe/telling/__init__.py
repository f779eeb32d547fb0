"""What the report, the command line and the explorer say alike of a run and of its findings."""
