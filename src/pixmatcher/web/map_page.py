"""The map of a collection in two dimensions."""

from __future__ import annotations

import streamlit as st

from .controls import choose_collection
from .texts import t


def show() -> None:
    choose_collection()
    st.info(t("no_map"))
