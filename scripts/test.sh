#!/usr/bin/env bash
# Creates .venv, checks style and types, and runs all tests. Arguments go to pytest: bash scripts/test.sh -k schedule
set -euo pipefail
source "$(dirname "$0")/environment.sh"
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
exec .venv/bin/python -m pytest "$@"
