#!/usr/bin/env bash
# Builds the documentation into build/docs, in an environment of its own, .venv-docs; any warning fails. Arguments go to
# mkdocs: bash scripts/docs.sh serve
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -e .venv-docs/installed ]; then
    "${PYTHON:-python3}" -m venv .venv-docs
    .venv-docs/bin/python -m pip install --quiet --disable-pip-version-check mkdocs mkdocs-material 'mkdocstrings[python]' ruff
    touch .venv-docs/installed
fi
command=build
if [ $# -gt 0 ]; then
    command=$1
    shift
fi
exec .venv-docs/bin/mkdocs "$command" --strict --config-file docs/site/mkdocs.yml "$@"
