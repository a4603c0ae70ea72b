#!/bin/bash
# Checks the documentation: relative links lead somewhere (anchors included), files of the tree that it names are there,
# and every `docklet …`, `docklet-master …` and `docklet-worker …` in code is a command that exists, with options that
# it has.
#
#   tools/check-docs.sh          the built programs are taken from target/release, else from PATH
set -euo pipefail

# shellcheck source=tools/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$DOCKLET_ROOT"

FAILED=0
declare -A HELP TOLD

# Each is told once.
problem() {
  if [[ -z ${TOLD[$*]+x} ]]; then
    TOLD[$*]=yes
    printf '%s\n' "$*" >&2
    FAILED=$((FAILED + 1))
  fi
}

documents() {
  git -c safe.directory='*' ls-files --cached --others --exclude-standard -- '*.md'
}

# ---- Links ----------------------------------------------------------------------------------------------------------

# The anchors that the headings of a file make, as GitHub does.
anchors() {
  awk '/^```/ { code = !code } !code && /^#+ / { sub(/^#+ /, ""); print }' "$1" |
    tr '[:upper:]' '[:lower:]' | sed -e 's/[^a-z0-9 _-]//g' -e 's/ /-/g'
}

check_link() {
  local document=$1 link=$2 path=${2%%#*} target
  case $link in
    http://* | https://* | mailto:*) return ;;
  esac
  target=$document
  if [[ -n $path ]]; then target=$(dirname "$document")/$path; fi
  if [[ ! -e $target ]]; then
    problem "$document: the link $link leads nowhere"
  elif [[ $link == *#* ]] && ! anchors "$target" | grep -qxF -- "${link#*#}"; then
    problem "$document: the link $link names no heading of $target"
  fi
}

check_links() {
  local document link
  while read -r document; do
    while read -r link; do
      check_link "$document" "$link"
    done < <(awk '/^```/ { code = !code } !code' "$document" | grep -oP '\]\(\K[^)\s]+' || true)
  done < <(documents)
}

# ---- Commands -------------------------------------------------------------------------------------------------------

# The code of a document: lines of blocks, and spans, which may go over the end of a line.
code_of() {
  awk '
    function spans() {
      while (match(text, /`[^`]+`/)) { print substr(text, RSTART + 1, RLENGTH - 2); text = substr(text, RSTART + RLENGTH) }
      text = ""
    }
    /^ *```/ { spans(); code = !code; next }
    code { print; next }
    /^ *$/ { spans() }
    { text = text " " $0 }
    END { spans() }' "$1"
}

# Source files that it names by their whole path.
check_paths() {
  local document path
  while read -r document; do
    while read -r path; do
      [[ -e $path ]] || problem "$document: there is no $path"
    done < <(code_of "$document" | grep -oP '^(basefs|common|master|tools|web|worker)/[\w./-]+\.\w+$' || true)
  done < <(documents)
}

# Commands in it, one a line: up to where the shell, or the command that runs in a node, begins.
commands_of() {
  code_of "$1" |
    grep -oP '(?:^|[|(;&$]|\bsudo|\bdo|\bthen) *\Kdocklet(?:-master|-worker|-bench)?(?: +(?:[^\s|;&<>)"\x27\\]|\\\|)+)+' || true
}

program() {
  local built=${CARGO_TARGET_DIR:-target}/release/$1
  if [[ -x $built ]]; then printf '%s\n' "$built"; else command -v "$1"; fi
}

# help_of PROGRAM WORD…: its --help is in $HELP_TEXT; fails where there is no such command.
help_of() {
  local key="$*" path
  if [[ -z ${HELP[$key]+x} ]]; then
    path=$(program "$1") || die "$1 is not built; cargo build --release"
    shift
    HELP[$key]=$("$path" "$@" --help 2>/dev/null) || HELP[$key]=
  fi
  HELP_TEXT=${HELP[$key]}
  [[ -n $HELP_TEXT ]]
}

# Whether the help that was last read lists commands of its own.
has_commands() { grep -q '^Commands:' <<<"$HELP_TEXT"; }

# check_command DOCUMENT WORDS…
check_command() {
  local document=$1 word alternative skip=no
  local -a said=("$2") options=()
  local -a all=("${@:2}")
  help_of "$2" || { problem "$document: $2 has no --help"; return; }
  for word in "${all[@]:1}"; do
    if [[ $skip == yes ]]; then
      skip=no
      continue
    fi
    case $word in
      --) break ;;
      --config | --url | --owner | --token | --timeout | -o | --output)
        options+=("$word")
        skip=yes
        ;;
      --[a-z]*) options+=("${word%%=*}") ;;
      [a-z]*)
        has_commands || continue
        # `start\|stop` in a table stands for each of them.
        IFS='|' read -ra alternatives <<<"${word//\\/}"
        for alternative in "${alternatives[@]}"; do
          help_of "${said[@]}" "$alternative" || problem "$document: there is no command ${said[*]} $alternative"
        done
        said+=("${alternatives[0]}")
        help_of "${said[@]}" || return 0
        ;;
    esac
  done
  help_of "${said[@]}" || return 0
  for word in "${options[@]}"; do
    grep -qE -- "(^|[ ,])$word([ ,=]|$)" <<<"$HELP_TEXT" || problem "$document: ${said[*]} has no option $word"
  done
}

check_commands() {
  local document line
  local -a words
  while read -r document; do
    while read -r line; do
      line=${line//[\[\]]/}
      read -ra words <<<"$line"
      check_command "$document" "${words[@]}"
    done < <(commands_of "$document")
  done < <(documents)
}

check_links
check_paths
check_commands
if ((FAILED > 0)); then
  printf '%d problems in the documentation\n' "$FAILED" >&2
  exit 1
fi
printf 'links and commands in %d documents are good\n' "$(documents | wc -l)"
