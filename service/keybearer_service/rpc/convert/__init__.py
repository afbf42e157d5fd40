"""Conversions between messages and the model. Reading rejects what the model cannot hold."""
