"""The folder that `launch` puts on `PYTHONPATH`, so that Python runs its `sitecustomize` in every child process."""
