# Sourced by the other scripts: changes to the repository's root and, the first time, creates .venv with the tested versions.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ ! -e .venv/installed ]; then
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    if [ -z "${python:-}" ]; then
        echo "No Python 3.11 or later was found; install one, or pass its path: PYTHON=/path/to/python3.12 bash $0" >&2
        exit 2
    fi
    echo "Creating .venv and installing packages (1.7 GB, a minute or two) ..."
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[scripts,test]'
    touch .venv/installed
fi
