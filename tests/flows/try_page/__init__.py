"""Tests of the try page."""
