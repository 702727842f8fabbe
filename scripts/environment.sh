# Sourced by demo.sh and check.sh: makes .venv once, installs distnn with the extras named in $extras
# into it, and activates it. (A plain sh passes no arguments to what it sources.)

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "distnn needs Python 3.11 or newer; $("$python" --version 2>&1) is $(command -v "$python")." >&2
    echo "Set PYTHON=/path/to/python3.11 and run this again." >&2
    exit 1
}
[ -x .venv/bin/python ] || {
    echo "Making an environment in .venv"
    "$python" -m venv .venv
}
. .venv/bin/activate
# What was installed is remembered, so that a second run is quick and needs no network.
wanted="$extras $(cksum < pyproject.toml)"
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
    echo "Installing distnn[$extras]"
    python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
    echo "$wanted" > .venv/installed
fi
