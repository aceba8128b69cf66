"""Depth folding: repeated layers are traced a few times, and their part of the trace is replicated, exactly or not at all."""
