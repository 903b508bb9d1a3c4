"""The base model (base), where LoRA goes (architectures), LoRA itself (lora), what language models answer (scoring)."""
