"""The command `metastore` and its subcommands."""
