# Shared by scripts/quickstart, scripts/test, scripts/lock and .ci/run: finds a Python, makes a
# virtual environment and installs a lock file into it. Source it; it runs nothing by itself.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
oldest_python=3.11
uv_version=0.13.8

# These would make Python import another tree than this one, or another environment's packages.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# The command line or the machine is wrong, and the message says what to do about it.
fail() {
  say "error: $*"
  exit 2
}

elsewhere="Remove it, or choose another folder with --venv DIR."

# X.Y of the interpreter $1; fails if it does not run (a pyenv shim of a version not switched on, say).
python_minor() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

is_new_enough() {
  "$1" -c "import sys; sys.exit(sys.version_info < (${oldest_python/./, }))" 2>/dev/null
}

# Interpreters of version $1 (X.Y) worth trying: on PATH, then pyenv's.
candidates() {
  type -P "python$1"
  local installed
  for installed in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
    [[ -x $installed ]] && echo "$installed"
  done
}

# Prints an interpreter of exactly version $1 (X.Y); fails if there is none.
find_python_version() {
  local python
  for python in $(candidates "$1"); do
    if [[ $(python_minor "$python") == "$1" ]]; then
      echo "$python"
      return
    fi
  done
  return 1
}

# Prints python3 if it is new enough, otherwise the first newer one found beside it.
find_python() {
  local default version python
  if default=$(type -P python3) && is_new_enough "$default"; then
    echo "$default"
    return
  fi
  for version in 3.12 3.11 3.13 3.14; do
    if python=$(find_python_version "$version"); then
      say "python3 is $(describe_python "$default"): using $python instead"
      echo "$python"
      return
    fi
  done
  fail "needs Python $oldest_python or newer; python3 is $(describe_python "$default")." \
    "Install Python 3.12 (pyenv install 3.12, or your system's python3.12 package) and run again."
}

describe_python() {
  if [[ -z ${1:-} ]]; then
    echo "not on PATH"
  else
    echo "$1, Python $(python_minor "$1" || echo "that does not run")"
  fi
}

# Fails unless $1 is an interpreter that can make a virtual environment.
check_python() {
  type -P "$1" >/dev/null || fail "$1: no such program"
  python_minor "$1" >/dev/null || fail "$1 does not run as a Python interpreter"
  is_new_enough "$1" ||
    fail "$1 is Python $(python_minor "$1"); jaxscale needs $oldest_python or newer"
  "$1" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$1 has no venv module (on Debian and Ubuntu: apt-get install python$(python_minor "$1")-venv)"
}

# Makes the virtual environment $1 with the interpreter $2, or keeps the one that is there if it
# serves: new enough, and of the version of $2 (empty: any). One whose Python is gone is made again.
make_venv() {
  local venv=$1 python=$2 held
  if held=$(python_minor "$venv/bin/python"); then
    is_new_enough "$venv/bin/python" ||
      fail "$venv holds Python $held; jaxscale needs $oldest_python or newer. $elsewhere"
    [[ -z $python || $(python_minor "$python") == "$held" ]] ||
      fail "$venv holds Python $held, not $(python_minor "$python"). $elsewhere"
    return
  fi
  if [[ -e $venv && ! -e $venv/pyvenv.cfg && -n $(ls -A "$venv" 2>/dev/null || echo file) ]]; then
    fail "$venv exists and is not a virtual environment. Choose another folder with --venv DIR."
  fi
  python=${python:-$(find_python)}
  check_python "$python"
  say "making $venv with Python $(python_minor "$python")"
  "$python" -m venv --clear "$venv" || fail "could not make $venv (the message above says why)"
}

# What the environment was installed from: lock $1, its project, and where both lie.
installation_state() { cat "$1" "$root/pyproject.toml" && echo "$root, uv $uv_version"; }

# Installs the lock $2 and jaxscale (editable) into $1, unless they are there already.
#
# uv: 14 s for venv + packages + bytecode where pip takes 29 s (docs/dependencies.md). The exact
# versions of the lock are added to what is there; nothing the user installed is removed.
install_lock() {
  local venv=$1 lock=$2 state=$1/jaxscale-installed-from.txt
  if installation_state "$lock" | cmp -s - "$state"; then
    return
  fi
  say "installing $(basename "$lock" .txt) packages into $venv (about 20 s)"
  rm -f "$state"
  ensure_pip "$venv"
  if ensure_uv "$venv" && with_uv "$venv" "$lock"; then
    :
  elif with_pip "$venv" "$lock"; then
    say "uv could not install them, but pip did"
  else
    fail "could not install $lock (the message above says why; is the package index reachable?)"
  fi
  installation_state "$lock" >"$state"
}

# A venv whose making was interrupted has a Python and no pip.
ensure_pip() {
  "$1/bin/python" -c 'import pip' 2>/dev/null ||
    "$1/bin/python" -m ensurepip >/dev/null || fail "could not install pip into $1"
}

ensure_uv() {
  [[ $("$1/bin/uv" --version 2>/dev/null) == "uv $uv_version"* ]] ||
    quiet_pip "$1" install "uv==$uv_version"
}

# Bytecode is compiled here, once, even where PYTHONDONTWRITEBYTECODE is set: without it
# `import jax` takes 2.1 s instead of 0.6 s in every process.
with_uv() {
  local uv=("$1/bin/uv" pip install --quiet --python "$1/bin/python")
  local index=${PIP_INDEX_URL:-$("$1/bin/python" -m pip config get global.index-url 2>/dev/null)}
  if [[ -n $index && -z ${UV_DEFAULT_INDEX:-} ]]; then
    export UV_DEFAULT_INDEX=$index # uv does not read pip's settings.
  fi
  "${uv[@]}" --compile-bytecode --requirements "$2" && "${uv[@]}" --no-deps --editable "$root"
}

with_pip() {
  quiet_pip "$1" install --requirement "$2" && quiet_pip "$1" install --no-deps --editable "$root"
}

# pip without its greetings and warnings; errors still show.
quiet_pip() {
  env -u PYTHONDONTWRITEBYTECODE PIP_DISABLE_PIP_VERSION_CHECK=1 \
    "$1/bin/python" -m pip -qq "${@:2}"
}
