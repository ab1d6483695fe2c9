"""`python -m castor`: the castor command, uninstalled."""

from castor.cli.main import main

if __name__ == "__main__":
    main()
