"""Tests of the C extension, seen from Python."""
