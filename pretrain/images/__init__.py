"""Image sources of all formats, decoding and cropping."""
