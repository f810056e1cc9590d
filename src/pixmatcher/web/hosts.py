"""Under which names the app answers: a site must not reach it by letting its own name point here (DNS rebinding)."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import streamlit as st


def is_known_host(host: str | None) -> bool:
    """Whether the Host header of a visitor is an IP address, `localhost`, or a name that the settings give the app.

    Streamlit itself compares the Origin with the Host only, and both are the site's where its name points here.
    """
    if host is None:  # there is no browser
        return True
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    given = [urlsplit(origin).hostname for origin in st.get_option("server.corsAllowedOrigins") or ()]
    given += [st.get_option("server.address"), st.get_option("browser.serverAddress")]
    if name == "localhost" or name.endswith(".localhost") or name in given:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
