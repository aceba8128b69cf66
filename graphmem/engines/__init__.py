"""What runs a model for inference, each with its own accounting: transformers, vLLM, llama.cpp."""
