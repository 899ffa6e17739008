"""Figures of plotly: pure functions of a run, shared by page, live dashboard and notebook."""
