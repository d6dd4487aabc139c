# Sourced by the other scripts: makes the virtual environment from requirements.lock, once, and sets $bin to its programs.
# VENV names another place for it than .venv, PYTHON another interpreter than the first suitable one.

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
venv=${VENV:-$root/.venv}
bin=$venv/bin

suitable() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.13 python3.10 python}; do
        if suitable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.10, 3.11, 3.12 or 3.13 is needed; set PYTHON to the one to use." >&2
    return 1
}

# The hash of what the environment is made from: it is set up again only when that changes.
fingerprint() {
    cat requirements.lock pyproject.toml | "$1" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

set_up() {
    python=$(find_python)
    if [ "$(cat "$venv/.set-up" 2>/dev/null)" = "$(fingerprint "$python")" ]; then
        return
    fi
    echo "Setting up $venv (several GB the first time) ..." >&2
    rm -f "$venv/.set-up"
    if "$python" -m venv "$venv" 2>/dev/null; then
        pip="$bin/python -m pip"
    else
        # Debian splits ensurepip off: use the pip beside the interpreter.
        "$python" -m venv --without-pip "$venv"
        pip="$python -m pip --python $bin/python"
    fi
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
    $pip install --quiet --require-hashes -r requirements.lock
    # Without build isolation, since what builds the package stands in the lock as well.
    $pip install --quiet --no-deps --no-build-isolation --editable .
    fingerprint "$python" >"$venv/.set-up"
}

set_up
