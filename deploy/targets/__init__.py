"""What exported programs can be written for and run with; one file per target, found as plug-ins."""
