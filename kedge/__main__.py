"""`python -m kedge` is `kedge`."""

from __future__ import annotations

from kedge.cli import main

if __name__ == "__main__":
    main()
