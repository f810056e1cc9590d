"""What Streamlit serves: the pages, and a guard before all that is not one."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from pixmatcher.web.guard import Guard

# Streamlit looks for this line in the text of the file.
app = st.App(Path(__file__).with_name("pages.py"), middleware=[Middleware(Guard)])
