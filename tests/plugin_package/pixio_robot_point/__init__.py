"""One plug-in of each kind for pixio-robot: the example of docs/extend.md."""
