#!/usr/bin/env bash
# Makes a Jetson with JetPack 6 or 7 ready for s2a-edge: a virtual environment, a user, services.
#
# Without --apply nothing is changed: it checks, and prints what it would do. Run again it does only
# what is missing. Exit codes: 0 done, 1 a check failed (nothing was changed) or a step did, 2 wrong
# usage.
set -euo pipefail
umask 022

usage() {
  cat <<'TEXT'
usage: install.sh [--apply] --wheels DIR [options]

  --apply              do it; without it, print what would be done
  --wheels DIR         wheel folder made by tools/make_wheelhouse; nothing is downloaded
  --prefix DIR         the board's folder (default /opt/s2a-edge)
  --user NAME          who trains (default s2a-edge; made where missing)
  --onnxruntime WHEEL  another build of ONNX Runtime, installed instead of the one in --wheels
  --trust FILE.pub     a key that bundles must be signed with; may be repeated
  --python PROGRAM     Python 3.10 or newer (default python3)
  --enable UNIT        enable s2a-edge-train.timer or s2a-edge-train.path; may be repeated
  --any-board          go on where the board is no Jetson with JetPack 6 or 7
  --root DIR           look at and change the system below DIR; makes no user, starts nothing
TEXT
}

fail_usage() {
  echo "install.sh: $1" >&2
  usage >&2
  exit 2
}

apply=no wheels='' prefix=/opt/s2a-edge user=s2a-edge runtime='' python=python3 any_board=no sysroot=''
trust=() enable=()
while [ $# -gt 0 ]; do
  case $1 in
    --apply) apply=yes ;;
    --any-board) any_board=yes ;;
    -h | --help) usage; exit 0 ;;
    --wheels | --prefix | --user | --onnxruntime | --trust | --python | --enable | --root)
      [ $# -ge 2 ] || fail_usage "$1 needs a value"
      case $1 in
        --wheels) wheels=$2 ;;
        --prefix) prefix=$2 ;;
        --user) user=$2 ;;
        --onnxruntime) runtime=$2 ;;
        --trust) trust+=("$2") ;;
        --python) python=$2 ;;
        --enable) enable+=("$2") ;;
        --root) sysroot=${2%/} ;;
      esac
      shift ;;
    *) fail_usage "unknown option $1" ;;
  esac
  shift
done
[ -n "$wheels" ] || fail_usage "--wheels is needed"
# These go into unit files and sed; nothing there needs quoting.
[[ $prefix =~ ^(/[A-Za-z0-9._-]+)+$ && $prefix != */..* ]] \
  || fail_usage "--prefix: expected an absolute path of plain characters, got $prefix"
[[ $user =~ ^[a-z_][a-z0-9_-]{0,31}$ && $user != root ]] \
  || fail_usage "--user: expected a name, not root, got $user"
for unit in "${enable[@]}"; do
  case $unit in
    s2a-edge-train.timer | s2a-edge-train.path) ;;
    *) fail_usage "--enable: expected s2a-edge-train.timer or s2a-edge-train.path, got $unit" ;;
  esac
done

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
target=$sysroot$prefix units=$sysroot/etc/systemd/system rules=$sysroot/etc/udev/rules.d
min_free_mib=1024 min_memory_mib=1800
# What s2a-edge depends on besides ONNX Runtime (pyproject.toml), and what serve-serial needs.
packages=(numpy safetensors Pillow 'typer<0.29' rich cryptography tomli)
serial_packages=(pyserial cobs)

# --- checks: nothing is changed here ---------------------------------------------------------
failures=0
good() { printf '  ok    %s\n' "$1"; }
warn() { printf '  note  %s\n' "$1"; }
bad() { printf '  FAIL  %s\n' "$1"; failures=$((failures + 1)); }

check_board() {
  local file=$sysroot/etc/nv_tegra_release line='' major=''
  [ ! -r "$file" ] || IFS= read -r line <"$file" || true
  [[ $line =~ ^#\ R([0-9]+)\ \(release\),\ REVISION:\ ([0-9.]+) ]] && major=${BASH_REMATCH[1]}
  case $major in
    36) good "JetPack 6 (L4T R36, revision ${BASH_REMATCH[2]})" ;;
    38 | 39) good "JetPack 7 (L4T R$major, revision ${BASH_REMATCH[2]})" ;;
    *)
      local got="no /etc/nv_tegra_release"
      [ -z "$line" ] || got="\"${line:0:60}\""
      if [ $any_board = yes ]; then
        warn "board: expected JetPack 6 or 7, got $got; going on, as --any-board says"
      else
        bad "board: expected JetPack 6 or 7, got $got; install JetPack 6, or give --any-board"
      fi ;;
  esac
}

check_python() {
  local version
  if ! version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); then
    bad "python: expected $python, got none; apt-get install python3"
    return
  fi
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    bad "python: expected 3.10 or newer, got $version; name another with --python"
  elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    bad "python: expected the module venv, got none; apt-get install python$version-venv"
  else
    good "Python $version"
  fi
}

check_disk() {
  local folder=$target free_mib
  while [ ! -d "$folder" ]; do folder=$(dirname -- "$folder"); done
  free_mib=$(df -Pk -- "$folder" | awk 'NR == 2 { print int($4 / 1024) }')
  if [ -x "$target/venv/bin/python" ] || [ "$free_mib" -ge $min_free_mib ]; then
    good "$free_mib MiB free for $prefix"
  else
    bad "disk: expected $min_free_mib MiB free for $prefix, got $free_mib; make room or use --prefix"
  fi
}

check_memory() {
  local file=$sysroot/proc/meminfo total_mib available_mib
  [ -r "$file" ] || { bad "memory: expected $file, got none"; return; }
  total_mib=$(awk '$1 == "MemTotal:" { print int($2 / 1024) }' "$file")
  available_mib=$(awk '$1 == "MemAvailable:" { print int($2 / 1024) }' "$file")
  if [ "${total_mib:-0}" -lt $min_memory_mib ]; then
    bad "memory: expected $min_memory_mib MiB, got ${total_mib:-0}; pack with a board that has more"
  else
    good "$total_mib MiB of memory, ${available_mib:-0} available"
  fi
}

check_wheels() {
  shopt -s nullglob
  local found=("$wheels"/s2a_edge-*.whl) file
  shopt -u nullglob
  wheel=''
  if [ ${#found[@]} -ne 1 ]; then
    bad "wheels: expected one s2a_edge-*.whl in $wheels, got ${#found[@]}; tools/make_wheelhouse"
  elif [ ! -f "$wheels/SHA256SUMS" ]; then
    bad "wheels: expected $wheels/SHA256SUMS, got none; tools/make_wheelhouse makes it"
  elif ! (cd -- "$wheels" && sha256sum --quiet --strict -c SHA256SUMS) >/dev/null 2>&1; then
    bad "wheels: expected the hashes of SHA256SUMS, got others; copy the folder again"
  else
    wheel=${found[0]}
    good "wheels: $(basename -- "$wheel"), hashes as noted"
  fi
  for file in ${runtime:+"$runtime"} "${trust[@]}"; do
    [ -f "$file" ] || bad "$file: expected a file, got none"
  done
}

check_existing() {
  if [ -e "$target/venv" ] && [ ! -f "$target/venv/pyvenv.cfg" ]; then
    bad "$prefix/venv: expected none, or a virtual environment, got something else; move it away"
  elif [ -e "$target/venv" ]; then
    good "an installation is there; releases, runs and photos are left as they are"
  fi
  [ ! -L "$target" ] || bad "$prefix: expected a folder, got a symlink; give where it leads"
}

check_rights() {
  [ $apply = no ] || [ -n "$sysroot" ] || [ "$(id -u)" -eq 0 ] \
    || bad "rights: expected root for --apply, got $(id -un); use sudo"
  [ -n "$sysroot" ] || [ -d /run/systemd/system ] \
    || bad "systemd: expected it to run here, got another init; in a container use deploy/docker"
}

echo "Checks:"
check_board; check_python; check_disk; check_memory; check_wheels; check_existing; check_rights
if [ $failures -gt 0 ]; then
  echo "$failures of the checks failed; nothing was changed."
  exit 1
fi

# --- steps: each only where something is missing ---------------------------------------------
steps=0 reload=no
step() { # step TEXT COMMAND...
  steps=$((steps + 1))
  printf '  %s\n' "$1"
  shift
  [ $apply = no ] || "$@"
}
is_system() { [ -z "$sysroot" ]; }
own() { ! is_system || chown -- "$1" "$2"; }

make_folder() { # make_folder PATH MODE OWNER:GROUP
  install -d -m "$2" -- "$1"
  own "$3" "$1"
}

make_user() {
  # A shell, so that ssh://USER@board works with a key; no password, so that nothing else does.
  useradd --system --user-group --home-dir "$prefix" --no-create-home --shell /bin/bash "$user"
}

venv_stamp() { cat -- "$wheels/SHA256SUMS" ${runtime:+"$runtime"} | sha256sum | cut -d' ' -f1; }

make_venv() {
  local pip=("$target/venv/bin/python" -I -m pip --disable-pip-version-check --quiet install
    --no-index --find-links "$wheels" --upgrade)
  rm -f -- "$target/venv/.s2a-edge"
  [ -x "$target/venv/bin/python" ] || "$python" -m venv --clear "$target/venv"
  if [ -n "$runtime" ]; then # exactly one build may be installed
    "$target/venv/bin/python" -I -m pip --quiet uninstall --yes onnxruntime >/dev/null 2>&1 || true
    "${pip[@]}" "$runtime" "${packages[@]}" "${serial_packages[@]}"
    "${pip[@]}" --no-deps --force-reinstall "$wheel"
  else
    "${pip[@]}" "${serial_packages[@]}" "$wheel"
  fi
  "$target/venv/bin/python" -I -c 'import onnxruntime, s2a_edge'
  venv_stamp >"$target/venv/.s2a-edge"
}

rendered() {
  sed -e "s|/opt/s2a-edge|$prefix|g" -e "s|^User=s2a-edge\$|User=$user|" \
    -e "s|^Group=s2a-edge\$|Group=$user|" -- "$1"
}

put() { # put SOURCE DESTINATION MODE: renders, and replaces by a rename
  install -d -m 755 -- "$(dirname -- "$2")"
  rendered "$1" >"$2.new"
  chmod "$3" -- "$2.new"
  mv -fT -- "$2.new" "$2"
}

needs() { ! rendered "$1" | cmp -s - "$2"; }

echo "Steps:"
if is_system && ! id -u "$user" >/dev/null 2>&1; then
  step "make the user $user, without a password" make_user
fi
if is_system; then
  for group in video render dialout; do
    if getent group "$group" >/dev/null && ! id -nG "$user" 2>/dev/null | grep -qw "$group"; then
      step "put $user into the group $group" usermod -aG "$group" "$user"
    fi
  done
fi
# Sticky and root's: the user adds releases and runs, and cannot replace venv, bin or trust.
[ -d "$target" ] || step "make $prefix" make_folder "$target" 1775 "root:$user"
for name in photos photos/train runs night; do
  [ -d "$target/$name" ] || step "make $prefix/$name" make_folder "$target/$name" 2775 "$user:$user"
done
if [ "$(cat "$target/venv/.s2a-edge" 2>/dev/null)" != "$(venv_stamp)" ]; then
  step "install $(basename -- "$wheel") into $prefix/venv" make_venv
fi
for file in "${trust[@]}"; do
  key=$target/trust/$(basename -- "$file" .pub).pub
  cmp -s -- "$file" "$key" || step "trust $(basename -- "$file")" install -D -m 644 -- "$file" "$key"
done
if needs "$here/bin/s2a-edge-collect" "$target/bin/s2a-edge-collect"; then
  step "put $prefix/bin/s2a-edge-collect" \
    put "$here/bin/s2a-edge-collect" "$target/bin/s2a-edge-collect" 755
fi
if needs "$here/README.md" "$target/share/README.md"; then
  step "put $prefix/share/README.md" put "$here/README.md" "$target/share/README.md" 644
fi
for source in "$here"/systemd/*; do
  name=$(basename -- "$source")
  if needs "$source" "$units/$name"; then
    step "put /etc/systemd/system/$name" put "$source" "$units/$name" 644
    reload=yes
  fi
done
if needs "$here/udev/99-s2a-edge.rules" "$rules/99-s2a-edge.rules"; then
  step "put /etc/udev/rules.d/99-s2a-edge.rules" \
    put "$here/udev/99-s2a-edge.rules" "$rules/99-s2a-edge.rules" 644
  reload=yes
fi
if is_system && [ $reload = yes ]; then
  step "let systemd read its units again" systemctl daemon-reload
  step "let udev read its rules again" udevadm control --reload
fi
for unit in "${enable[@]}"; do
  if is_system && ! systemctl is-enabled --quiet "$unit" 2>/dev/null; then
    step "enable $unit" systemctl enable --now "$unit"
  fi
done

if [ $steps -eq 0 ]; then
  echo "  none: everything is in place."
elif [ $apply = no ]; then
  echo "Nothing was changed. Run it again with --apply."
else
  echo "Done."
fi
