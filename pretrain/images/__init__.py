"""Sources of images, whatever their format, and how encoded bytes become crops."""
