"""The clients: the Python one, and the browser's as package data."""
