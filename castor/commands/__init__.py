"""Groups of subcommands of the `castor` command, one module a group."""
