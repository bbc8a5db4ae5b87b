"""Reports: the data, and what the screen and a page show of it."""
