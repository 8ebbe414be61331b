"""Reading and writing recordings of cameras."""
