"""Plain inference with transformers: prefill and decode of ``generate``, traced."""
