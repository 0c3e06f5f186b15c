"""From gradients to recorded norms. Imports torch and accelerate, never transformers."""
