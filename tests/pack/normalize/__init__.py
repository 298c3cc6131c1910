"""Tests of s2a_edge.pack.normalize."""
