"""The page About: how the app works, and the encoders."""

from __future__ import annotations

import streamlit as st

from ..._version import __version__
from ...encoders.manage import list_models
from .._texts import as_markdown, as_plain_text, t, translate_phrase


def show() -> None:
    """Draw the page."""
    st.title("PixMatcher", anchor=False)
    st.markdown(t("about_intro"))
    st.header(t("about_how"), anchor=False)
    st.markdown(t("about_how_text"))
    st.header(t("about_privacy"), anchor=False)
    st.markdown(t("about_privacy_text"))
    st.header(t("about_models"), anchor=False)
    grid = st.grid(columns="auto", min_column_width=260)
    for model in list_models():
        with grid.cell(), st.container(border=True, gap="xsmall", height="stretch"):
            st.markdown(f"**{as_markdown(model.name)}**")
            st.text(as_plain_text(model.about))
            size = None if model.megabytes is None else f"{model.megabytes:.0f} {t('megabytes')}"
            st.caption(as_markdown(" · ".join(filter(None, (model.spaces, model.licence, size)))))
            st.badge(as_markdown(translate_phrase(model.state)), color="gray")
    st.caption(t("about_licence", version=__version__))
