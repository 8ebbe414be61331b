"""Work in other processes: jobs of a folder each in `launch`, many small items in `workers`."""
