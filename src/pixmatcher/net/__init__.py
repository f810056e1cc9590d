"""Networking: addresses, HTTP connections, fetching one or many images, downloads, unpacking.

May import nothing but `errors` and the private modules beside it.
"""
