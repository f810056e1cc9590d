"""The script that Streamlit runs for each visitor: the pages, and what keeps an error from becoming a traceback."""

from __future__ import annotations

import logging
from pathlib import Path

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from pixmatcher.errors import PixMatcherError
from pixmatcher.web import about_page, collection_page, image_page, map_page, text_page, welcome_page
from pixmatcher.web.controls import choose_language
from pixmatcher.web.guard import admit
from pixmatcher.web.hosts import is_known_host
from pixmatcher.web.share import Gate, shared_password
from pixmatcher.web.state import GoneError, shelf, tidy
from pixmatcher.web.texts import sentence, t

_LOGO = Path(__file__).parent / "logo.svg"


def main() -> None:
    st.set_page_config(page_title="PixMatcher", page_icon=str(_LOGO), layout="wide")
    st.logo(str(_LOGO), size="large")
    if not is_known_host(st.context.headers.get("Host")):
        st.error(t("unknown_host"), icon=":material/error:")
        return
    password = shared_password()
    entered = password is None or st.session_state.get("entered") == password
    image = st.Page(
        image_page.show, title=t("image_page"), icon=":material/image_search:", url_path="image", default=True
    )
    about = st.Page(about_page.show, title=t("about"), icon=":material/info:", url_path="about")
    page = st.navigation(
        [
            image,
            st.Page(text_page.show, title=t("text_page"), icon=":material/text_fields:", url_path="text"),
            st.Page(map_page.show, title=t("map_page"), icon=":material/scatter_plot:", url_path="map"),
            st.Page(
                collection_page.show, title=t("collection_page"), icon=":material/photo_library:", url_path="collection"
            ),
            about,
        ],
        position="top" if entered else "hidden",
    )
    if password is not None and not entered:
        _ask_for(password)
        choose_language()
        return
    if password is not None and (context := get_script_run_ctx()) is not None:
        admit(context.session_id)
    if st.session_state.pop("go_to_image_page", False) and page != image:
        st.switch_page(image)
    try:
        if page == about or shelf().paths:
            page.run()
        else:
            welcome_page.show()
    except GoneError as error:
        st.error(t("collection_gone", path=str(error.path)), icon=":material/error:")
    except PixMatcherError as error:
        st.error(sentence(error), icon=":material/error:")
    except Exception:
        logging.getLogger("pixmatcher").exception("a page failed")
        st.error(t("internal"), icon=":material/error:")
    choose_language()
    tidy()


@st.cache_resource(show_spinner=False)
def _gate(password: str) -> Gate:
    return Gate(password)


def _ask_for(password: str) -> None:
    """All that a visitor of a shared app sees before the password was given."""
    st.title(t("share_title"), anchor=False)
    st.caption(t("share_text"))
    with st.form("password_form", border=False):
        given = st.text_input(t("password"), type="password", max_chars=200, key="password")
        asked = st.form_submit_button(t("enter"))
    if asked:
        opened = _gate(password).opens(given or "")
        if opened:
            st.session_state["entered"] = password
            st.rerun()
        st.error(t("password_wrong") if opened is False else t("password_wait"), icon=":material/lock:")


main()
