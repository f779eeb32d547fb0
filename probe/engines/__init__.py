"""Who reads the units of a run: this process, or workers elsewhere. One engine is one file."""
