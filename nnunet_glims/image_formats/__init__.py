"""Is an image file whole? One module a file format, because SimpleITK reads zeros where bytes are missing."""
