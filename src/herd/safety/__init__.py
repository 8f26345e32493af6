"""Guards around a model: Llama Guard, Prompt Guard, Code Shield, patterns, and detectors of our own that work without published weights.

Everything here judges text and says so in one shape, `verdict.Verdict`; `shields.Shields` runs several at a touch point and fails closed.
Speaks to a model through `inference.port` alone, and knows no engine, no route and no tool.
"""
