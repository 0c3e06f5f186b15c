"""Every patch and private name of transformers, accelerate and torch, each with its reason, versions and end."""
