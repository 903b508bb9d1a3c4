"""The base model (base), LoRA (lora), the layers it adapts (architectures), and language models (scoring, generation)."""
