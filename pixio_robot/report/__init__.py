"""Reports: the HTML page, its curves, and the tables that commands print."""
