#!/bin/sh
# Makes .venv, or mends it, or says that nothing is to do. Called by `make setup`; PYTHON=... chooses the interpreter.
# An environment that uv made (uv venv, uv sync) is kept, and filled by uv.
set -eu
cd "$(dirname "$0")"
here=$(pwd)
venv=.venv
done_stamp=$venv/.set-up-done # what was installed, once all of it is
busy_stamp=$venv/.set-up-unfinished
log=$venv/set-up.log # all that the installer says
pythons=${PYTHON:-python3.12 python3.13 python3.11 python3.14 python3}

say() { printf 'set-up: %s\n' "$*"; }
fail() {
    printf 'set-up: %s\n' "$*" >&2
    exit 1
}

# A name on PATH may be a shim of a Python that is not installed: only one that runs counts
is_right() { "$1" -c 'import sys; sys.exit(not (3, 11, 5) <= sys.version_info < (3, 15))' >/dev/null 2>&1; }
version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null || true; }

choose_python() {
    for candidate in $pythons; do
        if is_right "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
}

# A set-up that was cut short can leave half a package behind that pip takes for a whole one. -I: only what is in $venv
is_whole() {
    "$venv/bin/python" -I - <<'PY'
import csv, importlib.metadata, os, sys

for package in importlib.metadata.distributions():
    record = package.read_text("RECORD")
    if record is None or package.metadata["Name"] is None:
        sys.exit(1)
    for name, _, size in csv.reader(record.splitlines()):
        path = package.locate_file(name)
        if size and not (os.path.isfile(path) and os.path.getsize(path) == int(size)):
            sys.exit(1)
PY
}

wanted() { # changes when there is something to install: other requirements, another Python, another folder
    printf '%s %s %s\n' "$(cat pyproject.toml constraints.txt | cksum)" "$(version_of "$venv/bin/python")" "$here"
}

# What is left of a half-removed environment can be a mere link to the system's own Python: never install into that
export PIP_REQUIRE_VIRTUALENV=1
is_environment() {
    "$1" -c 'import os, sys; sys.exit(not os.path.samefile(sys.prefix, sys.argv[1]))' "$venv" 2>/dev/null
}

has_pip() { "$venv/bin/python" -m pip --version >/dev/null 2>&1; }
is_of_uv() { grep -q '^uv = ' "$venv/pyvenv.cfg" 2>/dev/null && command -v uv >/dev/null; }
install() {
    if has_pip; then
        "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off "$@"
    else
        uv pip install --no-progress --python "$venv/bin/python" "$@"
    fi
}

# --- is there an environment that can be kept? ---
keep=no
if is_right "$venv/bin/python" && is_environment "$venv/bin/python" && { has_pip || is_of_uv; }; then
    keep=yes
    if [ -n "${PYTHON:-}" ]; then
        asked=$(version_of "$PYTHON")
        [ -n "$asked" ] || fail "PYTHON=$PYTHON does not run"
        [ "$asked" = "$(version_of "$venv/bin/python")" ] || keep=no
    fi
fi
if [ $keep = yes ] && [ -f "$busy_stamp" ]; then
    say "the last set-up was interrupted; looking at what it left ..."
    is_whole || keep=no
fi

if [ $keep = yes ] && [ -f "$done_stamp" ] && [ "$(cat "$done_stamp")" = "$(wanted)" ]; then
    say "$venv is up to date (Python $(version_of "$venv/bin/python")): nothing to do"
    exit 0
fi

# --- make it ---
if [ $keep = no ]; then
    python=$(choose_python)
    [ -n "$python" ] || fail "Python 3.11.5 to 3.14 is needed, and none of these is one that runs: $pythons." \
        "Install one, or name it: make setup PYTHON=/path/to/python3.12"
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        fail "$python cannot make environments: on Debian and Ubuntu, install python3-venv, then run this again"
    say "making $venv with $python (Python $(version_of "$python"))"
    rm -rf "$venv/bin" # first, so that an interrupted removal leaves nothing that runs
    rm -rf "$venv"
    mkdir "$venv"
    : >"$busy_stamp"
    "$python" -m venv "$venv" || {
        rm -rf "$venv"
        fail "could not make $venv"
    }
fi

# --- fill it ---
rm -f "$done_stamp"
: >"$busy_stamp"
say "installing what pyproject.toml asks for, at the versions of constraints.txt"
say "(with PyTorch's GPU libraries up to 6 GB of disk and some minutes the first time; safe to interrupt)"
say "(tail -f $log shows how far it is)"
install -c constraints.txt -e '.[course,data,full,site,test,dev]' >"$log" 2>&1 || {
    tail -n 15 "$log" >&2
    fail "could not install everything (all of it: $log); once that is mended, the same command goes on from here"
}
"$venv/bin/python" -c 'import torch, torchvision.ops' ||
    fail "torch and torchvision do not work together (see above): they must come from the same build"
wanted >"$done_stamp"
rm -f "$busy_stamp"
say "done: Python $(version_of "$venv/bin/python") in $venv"
