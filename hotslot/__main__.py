"""`python -m hotslot` is the `hotslot` command."""

from hotslot.cli.app import main

if __name__ == "__main__":
    main()
