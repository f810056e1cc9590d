"""The client of the HTTP service: a collection on another machine, with the methods and results of a local one.

May import `images`, `net`, `encoders`, `sources`, `collection`, `indexing` and `searching`.
"""
