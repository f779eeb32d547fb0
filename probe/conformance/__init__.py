"""Which architectures are captured exactly: tiny random models of each, held against their own eager attention."""
