"""Measures: tensors in, records out; never a model, a file or a device."""
