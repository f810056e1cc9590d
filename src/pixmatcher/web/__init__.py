"""The web app: a face in Streamlit, started by `pixmatcher app` or `streamlit run` on `app.py`."""
