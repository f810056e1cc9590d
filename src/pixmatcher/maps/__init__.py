"""Maps: a collection in two dimensions, items with similar images near each other.

`projection` computes and loads a map, `groups` chooses the colours, `plot` saves a picture or a page, and `interactive`
makes the figure of the web app.

May import every package of the library.
"""
