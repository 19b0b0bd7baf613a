"""The composition root: flags, files and environment are read here, and every part is put together."""
