"""GGUF files in llama.cpp: model, cache and compute buffers."""
