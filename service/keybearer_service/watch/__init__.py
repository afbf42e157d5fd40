"""The watch streams: every change is sent to everybody who may see it."""
