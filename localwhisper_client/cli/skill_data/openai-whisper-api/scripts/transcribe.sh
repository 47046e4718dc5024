#!/usr/bin/env bash
# Transcribes an audio file on the speech-to-text server on the LAN. Needs curl and nothing else; runs on bash 3.2.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: transcribe.sh FILE [--model whisper-1] [--out PATH] [--language en] [--prompt TEXT] [--json] [--delete-input]

Writes FILE's transcript beside it (voice.ogg -> voice.txt, with --json voice.json) and prints the path.
The server is WHISPER_API_URL (default http://wsl.home:5000), its key WHISPER_API_KEY or LOCALWHISPER_API_KEY.
With --delete-input, FILE is deleted after its transcript is safe on the disk. It stays if it changed meanwhile, if
there are no words in it, or if the answer is not surely a transcript.
EOF
}

wrong() {
  printf 'transcribe.sh: %s\n' "$1" >&2
  usage >&2
  exit 2
}

fail() {
  printf 'transcribe.sh: %s\n' "$1" >&2
  exit 1
}

in='' out='' model=whisper-1 language='' prompt='' format=text delete=no options=yes
while [ $# -gt 0 ]; do
  if [ "$options" = yes ]; then
    case $1 in
      --model | --out | --language | --prompt)
        [ $# -ge 2 ] || wrong "$1 needs a value"
        case $1 in
          --model) model=$2 ;;
          --out) out=$2 ;;
          --language) language=$2 ;;
          --prompt) prompt=$2 ;;
        esac
        shift 2
        continue
        ;;
      --json) format=json && shift && continue ;;
      --delete-input) delete=yes && shift && continue ;;
      -h | --help) usage && exit 0 ;;
      --) options=no && shift && continue ;;
      -*) wrong "unknown option: $1" ;;
    esac
  fi
  [ -z "$in" ] || wrong "one file at a time, not also: $1"
  in=$1
  shift
done
[ -n "$in" ] || wrong 'which file?'
[ -f "$in" ] || fail "no such file: $in"

# A name may begin with a dash.
case $in in -*) in=./$in ;; esac
name=${in##*/}
extension=
case $name in ?*.*) extension=.${name##*.} ;; esac
if [ -z "$out" ]; then
  if [ "$format" = json ]; then out=${in%"$extension"}.json; else out=${in%"$extension"}.txt; fi
fi
case $out in -*) out=./$out ;; esac
[ ! -d "$out" ] || fail "--out is a folder: $out"
if [ "$in" -ef "$out" ]; then fail "the transcript would replace the recording: $out"; fi

url=${WHISPER_API_URL:-http://wsl.home:5000}
while [ "${url%/}" != "$url" ]; do url=${url%/}; done
url=${url%/audio/transcriptions}
url=${url%/v1}/v1/audio/transcriptions
key=${WHISPER_API_KEY:-${LOCALWHISPER_API_KEY:-}}

# Prints a file's device, inode, size and time of change, by the stat of GNU and busybox or of BSD (macOS).
identity() {
  stat -L -c '%d %i %s %y' "$1" 2>/dev/null || stat -L -f '%d %i %z %Fm' "$1"
}

# Says how the recording differs from what was opened, if it does or if that cannot be found out.
changed() {
  [ -n "$before" ] || { echo 'this system does not tell whether it changed' && return; }
  [ "$(identity /dev/fd/3 2>/dev/null)" = "$before" ] || { echo 'it changed while it was transcribed' && return; }
  # If nothing has that name any more, nothing can be lost.
  [ ! -e "$in" ] || [ "$(identity "$in" 2>/dev/null)" = "$before" ] ||
    { echo 'another file took its place while it was transcribed' && return; }
  # Linux shows which programs have it open for writing (flags that end in 1 or 2).
  local open flags
  for open in /proc/[0-9]*/fd/*; do
    [ "$open" -ef "$in" ] || continue
    flags=$(grep '^flags:.*[12]$' "${open%/fd/*}/fdinfo/${open##*/}" 2>/dev/null) || continue
    [ -z "$flags" ] || { echo 'a program is still writing to it' && return; }
  done
}

case $out in */*) mkdir -p -- "${out%/*}" ;; esac
# Beside the output, so that the last step is a rename; made here, so that it gets a new file's permissions.
part=$out.$$.part
(set -o noclobber && : >"$part") || fail "cannot write beside $out"
trap 'rm -f -- "$part"' EXIT

exec 3<"$in"
before=$(identity /dev/fd/3 2>/dev/null) || before=

# -q: no ~/.curlrc. --noproxy: a proxy would carry the audio off the LAN. Redirects are not followed.
# The file comes through standard input, so curl does not interpret its name; only the ending of the name is sent.
# --form-string takes a value as it is, where -F would read a file at a leading @ or <.
# The key comes through a file descriptor, so no list of processes shows it.
set -- -q -sS --globoff --noproxy '*' --proto '=http,https' --connect-timeout 5 --max-time 3600 -H 'Expect:' \
  -D - -o "$part" -w '\n%{http_code} %{content_type}' \
  -F "file=@-;filename=audio$(printf %s "$extension" | LC_ALL=C tr -cd '.A-Za-z0-9')" \
  --form-string "model=$model" --form-string "response_format=$format"
[ -z "$language" ] || set -- "$@" --form-string "language=$language"
[ -z "$prompt" ] || set -- "$@" --form-string "prompt=$prompt"
if [ -n "$key" ]; then
  answer=$(curl "$@" -H @<(printf 'Authorization: Bearer %s\n' "$key") --url "$url" <&3) || failed=$?
else
  answer=$(curl "$@" --url "$url" <&3) || failed=$?
fi
if [ "${failed:-0}" != 0 ]; then
  fail "no answer from $url (curl says $failed). Is the server on? WHISPER_API_URL is its address."
fi

# curl printed the answer's headers, and then the line of -w.
last=${answer##*$'\n'}
status=${last%% *} kind=${last#* }
case $status in
  2*) ;;
  *)
    cat -- "$part" >&2
    printf '\n' >&2
    fail "status $status from $url"
    ;;
esac
case $format:$kind in
  json:application/json*) ;;
  text:text/html* | json:*) fail "$url answered with ${kind:-nothing}, which is not a transcript" ;;
esac

# Prints the answer's JSON in one line, without the escapes in its strings.
object() {
  LC_ALL=C tr -d '\r\n' <"$part" | LC_ALL=C sed -e 's/\\.//g' -e 's/[[:space:]]*$//'
}

# Says what the answer lacks to prove that it is a whole transcript.
missing_proof() {
  local headers plain
  headers=$(printf %s "$answer" | LC_ALL=C tr '[:upper:]' '[:lower:]')
  case $headers in
    *$'\n'content-length:* | *$'\n'transfer-encoding:*) ;;
    *) echo 'the answer does not say how long it is, and may be cut off' && return ;;
  esac
  if [ "$format" = json ]; then
    plain=$(object)
    # Of whole JSON nothing is left after its strings, and then its pairs of brackets from the inside out, are removed.
    [ -z "$(printf %s "$plain" | LC_ALL=C sed -e 's/"[^"]*"//g' -e :a -e 's/{[^][{}]*}//g' -e 's/\[[^][{}]*\]//g' -e ta)" ] ||
      { echo 'the answer is no whole JSON' && return; }
    printf %s "$plain" | LC_ALL=C grep -Eq '^[[:space:]]*\{.*"text"[[:space:]]*:[[:space:]]*"' ||
      { echo 'the answer has no text' && return; }
    if printf %s "$plain" | LC_ALL=C grep -Eq '"error"[[:space:]]*:'; then echo 'the answer is an error'; fi
    return
  fi
  case $headers in
    *$'\n'x-localwhisper-queue-seconds:*) ;;
    *) echo 'nothing in the answer shows that a speech-to-text server gave it; with --json it would' ;;
  esac
}

# Whether the transcript has any words.
has_words() {
  if [ "$format" = json ]; then
    object | LC_ALL=C grep -Eq '"text"[[:space:]]*:[[:space:]]*"[^"]*[^"[:space:]]'
  else
    LC_ALL=C grep -q '[^[:space:]]' "$part"
  fi
}

kept=
if [ "$delete" = yes ]; then
  [ -s "$part" ] || fail "the answer is empty; nothing was written or deleted"
  wrong=$(missing_proof)
  [ -n "$wrong" ] || wrong=$(changed)
  [ -z "$wrong" ] || fail "$wrong; nothing was written or deleted"
  has_words || kept='there are no words in it'
  sync "$part" || fail "the transcript could not be brought onto the disk; nothing was deleted"
fi
mv -f -- "$part" "$out"
if [ "$delete" = yes ]; then
  sync "$(dirname -- "$out")" || kept='the transcript may not be on the disk'
  [ -n "$kept" ] || kept=$(changed)
  if [ -n "$kept" ]; then
    printf 'transcribe.sh: not deleted: %s: %s\n' "$in" "$kept" >&2
  else
    rm -f -- "$in"
  fi
fi
printf '%s\n' "$out"
