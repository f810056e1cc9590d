"""What is shown where there is no collection yet: a way to the first one."""

from __future__ import annotations

import streamlit as st

from . import indexing
from .share import shared_password
from .texts import t


def show() -> None:
    st.title(t("welcome"), anchor=False)
    if shared_password():
        st.info(t("index_off"), icon=":material/lock:")
        return
    st.markdown(t("welcome_text"))
    with st.container(border=True):
        with st.form("welcome_form", border=False):
            text = st.text_input(t("folder"), key="folder", max_chars=4000) or ""
            make = st.form_submit_button(t("index_new"), icon=":material/create_new_folder:")
        folder = indexing.folder_of(text) if make else None
        if folder is not None:
            indexing.make_collection(folder)
    st.caption(t("welcome_examples"))
    if st.button(t("example_photos"), icon=":material/photo_library:"):
        indexing.make_example_collection()
    indexing.show_runs()
