"""Networking: fetch one image (`fetch`) or many (`fetch_many`), download a file (`download`, `stream`), `unzip`.

May import nothing but the modules beside the packages, such as `errors`.

`fetch` and `fetch_many` are for URLs from strangers: they connect to public addresses only, use no proxy, and keep the
content in memory. `download` is for URLs that the user trusts: it uses the proxies of the environment, writes to the
disk, and continues an interrupted download.
"""
