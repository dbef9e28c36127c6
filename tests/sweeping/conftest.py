"""Fixtures of the sweeps."""

import os

import pytest


@pytest.fixture
def no_sync(monkeypatch):
    """Do not wait for the disk: no test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
