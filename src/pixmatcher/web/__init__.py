"""The web app, in Streamlit: it draws and parses, and leaves everything else to the library.

`pixmatcher app` starts it with `serve`; `streamlit run app.py` works as well. Each page is a module of `_pages`.

May import every package but `cli`.
"""
