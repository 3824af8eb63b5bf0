"""``python -m affbench`` does what ``affbench`` does."""

from affbench.cli import main

if __name__ == "__main__":
    main()
