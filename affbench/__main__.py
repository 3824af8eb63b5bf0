"""``python -m affbench`` does what ``affbench`` does."""

from affbench.cli.app import main

if __name__ == "__main__":
    main()
