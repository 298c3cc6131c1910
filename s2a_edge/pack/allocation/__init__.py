"""Precision allocation: how many bits each saved value gets, by measured gradient error."""
