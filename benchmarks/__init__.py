"""Measures a bundle: accuracy on labelled clips."""
