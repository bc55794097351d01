"""`python -m flatsat.harness.cli`, for where the `flatsat` script is not on the path."""

from __future__ import annotations

from flatsat.harness.cli import main

if __name__ == "__main__":
    main()
