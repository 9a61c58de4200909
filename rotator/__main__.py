"""`python -m rotator` and the console script."""

from rotator.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
