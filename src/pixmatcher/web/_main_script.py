"""The script that Streamlit runs for each visitor: it checks the visitor, and runs the chosen page."""

from __future__ import annotations

import logging
from pathlib import Path

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from pixmatcher.errors import PixMatcherError
from pixmatcher.web._controls import choose_language
from pixmatcher.web._host_check import is_known_host
from pixmatcher.web._open_collections import CollectionMissingError, collect_garbage, collection_list
from pixmatcher.web._pages import about, collection, image_search, text_search, welcome
from pixmatcher.web._pages import map as map_page
from pixmatcher.web._route_guard import admit
from pixmatcher.web._texts import error_text, t
from pixmatcher.web.share import PasswordCheck, shared_password

_LOGO = Path(__file__).parent / "logo.svg"
_log = logging.getLogger("pixmatcher.web")


def main() -> None:
    st.set_page_config(page_title="PixMatcher", page_icon=str(_LOGO), layout="wide")
    st.logo(str(_LOGO), size="large")
    if not is_known_host(st.context.headers.get("Host")):
        st.error(t("unknown_host"), icon=":material/error:")
        return
    password = shared_password()
    logged_in = password is None or st.session_state.get("entered_password") == password
    image_page = st.Page(
        image_search.show, title=t("image_page"), icon=":material/image_search:", url_path="image", default=True
    )
    text_page = st.Page(text_search.show, title=t("text_page"), icon=":material/text_fields:", url_path="text")
    about_page = st.Page(about.show, title=t("about"), icon=":material/info:", url_path="about")
    page = st.navigation(
        [
            image_page,
            text_page,
            st.Page(map_page.show, title=t("map_page"), icon=":material/scatter_plot:", url_path="map"),
            st.Page(
                collection.show, title=t("collection_page"), icon=":material/photo_library:", url_path="collection"
            ),
            about_page,
        ],
        position="top" if logged_in else "hidden",
    )
    if password is not None and not logged_in:
        _ask_password(password)
        choose_language()
        return
    if password is not None and (context := get_script_run_ctx()) is not None:
        admit(context.session_id)
    if st.session_state.pop("open_image_page", False) and page != image_page:
        st.switch_page(image_page)
    try:
        if page == about_page or collection_list().paths:
            page.run()
        else:
            welcome.show()
    except CollectionMissingError as error:
        st.error(t("collection_missing", path=str(error.path)), icon=":material/error:")
    except PixMatcherError as error:
        st.error(error_text(error), icon=":material/error:")
    except Exception:
        _log.exception("the page %s failed", page.url_path)
        st.error(t("internal"), icon=":material/error:")
    choose_language()
    collect_garbage()


@st.cache_resource(show_spinner=False)
def _password_check(password: str) -> PasswordCheck:
    return PasswordCheck(password)


def _ask_password(password: str) -> None:
    """Show the password form: everything that a visitor of a shared app sees before the password."""
    st.title(t("share_title"), anchor=False)
    st.caption(t("share_text"))
    with st.form("password_form", border=False):
        entered = st.text_input(t("password"), type="password", max_chars=200, key="password")
        submitted = st.form_submit_button(t("log_in"))
    if submitted:
        correct = _password_check(password).is_correct(entered or "")
        if correct:
            st.session_state["entered_password"] = password
            st.rerun()
        st.error(t("password_wrong") if correct is False else t("password_wait"), icon=":material/lock:")


main()
