"""Offline work: labelled mail in, a fitted head out."""
