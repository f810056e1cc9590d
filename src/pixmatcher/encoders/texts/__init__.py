"""Tokenizers of text networks: texts become ids."""
