"""What the app is, how it works, with which encoders."""

from __future__ import annotations

import streamlit as st

from .. import __version__
from ..models import list_models
from .texts import phrase, plain, t


def show() -> None:
    st.header("PixMatcher", anchor=False)
    st.markdown(t("about_intro"))
    st.subheader(t("about_how"), anchor=False)
    st.markdown(t("about_how_text"))
    st.subheader(t("about_privacy"), anchor=False)
    st.markdown(t("about_privacy_text"))
    st.subheader(t("about_models"), anchor=False)
    rows = [
        {
            t("model"): plain(model.name),
            t("state"): plain(phrase(model.state)),
            t("space"): plain(model.spaces),
            t("licence"): plain(model.licence),
            t("megabytes"): model.megabytes,
            t("model_about"): plain(model.about),
        }
        for model in list_models()
    ]
    st.dataframe(rows, hide_index=True, column_config={t("megabytes"): st.column_config.NumberColumn(format="%.0f")})
    st.caption(t("about_licence", version=__version__))
