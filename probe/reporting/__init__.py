"""What a finished run looks like: one HTML file, one summary."""
