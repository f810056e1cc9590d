"""The page without any collection: it creates the first one."""

from __future__ import annotations

import streamlit as st

from .._indexing import create_collection, create_example_collection, show_index_jobs, valid_folder
from .._texts import t
from ..share import shared_password


def show() -> None:
    """Draw the page."""
    st.title(t("welcome"), anchor=False)
    if shared_password():
        st.info(t("index_off"), icon=":material/lock:")
        return
    st.markdown(t("welcome_text"))
    with st.container(border=True):
        with st.form("welcome_form", border=False):
            text = st.text_input(t("folder"), key="folder", max_chars=4000) or ""
            create = st.form_submit_button(t("index_new"), icon=":material/create_new_folder:")
        folder = valid_folder(text) if create else None
        if folder is not None:
            create_collection(folder)
    st.caption(t("welcome_examples"))
    if st.button(t("example_photos"), icon=":material/photo_library:"):
        create_example_collection()
    show_index_jobs()
