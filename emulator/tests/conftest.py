"""Test processes that run side by side share the machine: each launch keeps to one host thread there."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("EMULATOR_HOST_THREADS", "1")
