"""Plots of a run's metrics."""
