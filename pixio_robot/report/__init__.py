"""Reports: the page, its curves, the tables of the command line."""
