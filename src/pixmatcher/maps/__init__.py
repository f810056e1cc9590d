"""Maps: a collection in two dimensions, drawn as a picture or as a page."""
