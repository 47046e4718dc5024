#!/usr/bin/env bash
# Transcribes an audio file on the speech-to-text server in the house. Needs curl and nothing else; runs on bash 3.2.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: transcribe.sh FILE [--model whisper-1] [--out PATH] [--language en] [--prompt TEXT] [--json] [--delete-input]

Writes FILE's words beside it (voice.ogg -> voice.txt, with --json voice.json) and prints the path.
The server is WHISPER_API_URL (default http://wsl.home:5000), its key WHISPER_API_KEY or LOCALWHISPER_API_KEY.
FILE stays where it is unless --delete-input is given; it then goes once the transcript is written.
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

# A name that begins with a dash is a name all the same.
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

case $out in */*) mkdir -p -- "${out%/*}" ;; esac
# Beside the output, so that the last step is a rename; made here, so that it has the permissions a new file has.
part=$out.$$.part
(set -o noclobber && : >"$part") || fail "cannot write beside $out"
trap 'rm -f -- "$part"' EXIT

# -q: nobody's ~/.curlrc. --noproxy: a proxy would carry the audio out of the house; redirects are not followed.
# The file comes in through standard input, so its name cannot mean anything to curl; and of the name only the kind of
# file goes out. --form-string takes a value as it is, where -F would read a file at a leading @ or <.
# The key comes in through a file descriptor, where no list of processes shows it.
set -- -q -sS --globoff --noproxy '*' --proto '=http,https' --connect-timeout 5 --max-time 3600 -H 'Expect:' \
  -o "$part" -w '%{http_code} %{content_type}' \
  -F "file=@-;filename=audio$(printf %s "$extension" | LC_ALL=C tr -cd '.A-Za-z0-9')" \
  --form-string "model=$model" --form-string "response_format=$format"
[ -z "$language" ] || set -- "$@" --form-string "language=$language"
[ -z "$prompt" ] || set -- "$@" --form-string "prompt=$prompt"
if [ -n "$key" ]; then
  answer=$(curl "$@" -H @<(printf 'Authorization: Bearer %s\n' "$key") --url "$url" <"$in") || failed=$?
else
  answer=$(curl "$@" --url "$url" <"$in") || failed=$?
fi
if [ "${failed:-0}" != 0 ]; then
  fail "no answer from $url (curl says $failed). Is the server on? WHISPER_API_URL is its address."
fi

status=${answer%% *} kind=${answer#* }
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

mv -f -- "$part" "$out"
[ "$delete" = no ] || rm -f -- "$in"
printf '%s\n' "$out"
