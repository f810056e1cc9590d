"""The app that Streamlit serves: the main script, behind the route guard."""

from __future__ import annotations

import logging
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from pixmatcher._logging import show_log
from pixmatcher.web._route_guard import RouteGuard

show_log(logging.ERROR)  # the pages say that the terminal shows the details of an error

# Streamlit searches the text of this file for the next line.
app = st.App(Path(__file__).with_name("_main_script.py"), middleware=[Middleware(RouteGuard)])
