"""`python -m client` is the `hotslot` command."""

from client.cli.app import main

if __name__ == "__main__":
    main()
