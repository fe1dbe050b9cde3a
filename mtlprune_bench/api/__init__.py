"""The Python interface: runs, tables and masks, as short as the command line."""
