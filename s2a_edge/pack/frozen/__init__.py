"""Frozen weights in fewer bits: coding them, and decoding each right before it is used."""
