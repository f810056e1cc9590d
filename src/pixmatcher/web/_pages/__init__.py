"""The pages of the app: one module with a function `show` for each."""
