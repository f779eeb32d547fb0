"""`python -m probe` is the command `probe`."""

from __future__ import annotations

from probe.command.cli import main

if __name__ == "__main__":
    main()
