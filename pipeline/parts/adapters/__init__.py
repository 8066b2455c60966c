"""Adapters for vision transformers of timm: LoRA whose factors a narrower model can share, and bottlenecks."""
