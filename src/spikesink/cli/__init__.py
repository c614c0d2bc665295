"""The command line. Importing it loads no torch; each command does when it runs."""
