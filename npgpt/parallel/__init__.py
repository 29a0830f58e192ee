"""Ranks that train one model together: one process, or several on one machine."""
