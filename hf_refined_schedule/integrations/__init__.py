"""Plugins for tools that bring their own training loop or their own configuration. Each module needs its tool."""
