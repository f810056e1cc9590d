"""Checks the host name of requests. It prevents DNS rebinding: a site that points its own name at this computer."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import streamlit as st


def is_known_host(host: str | None) -> bool:
    """Return whether a Host header holds an IP address, `localhost` or a name from the app's settings.

    Streamlit only compares Origin with Host, and both hold the site's name when that name points here.
    """
    if host is None:  # the request does not come from a browser
        return True
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    configured = [urlsplit(origin).hostname for origin in st.get_option("server.corsAllowedOrigins") or ()]
    configured += [st.get_option("server.address"), st.get_option("browser.serverAddress")]
    if name == "localhost" or name.endswith(".localhost") or name in configured:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
