"""Layers composed into models."""
