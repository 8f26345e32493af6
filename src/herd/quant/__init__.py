"""Quantisation: schemes, calibration, the stream that applies them layer by layer, and the report of what they cost."""
