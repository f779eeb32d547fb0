"""Traces and runs on disk: written whole or not at all, read without torch."""
