n() {
    echo 'a link in the path, where rules on paths are set' >&2
    exit 1
}
# The same, where no link may be followed.
h() {
    d=${1%/*}
    cd -P -- "${d:-/}" 2>/dev/null || t "$1"
    [ "$PWD" = "${d:-/}" ] || n
    f=./${1##*/}
    [ -e "$f" ] || [ -h "$f" ] || t "$1"
    [ ! -h "$f" ] || n
    {
        # The file that was opened is the one of that name, whatever stood there before.
        [ "$(stat -L -c %d:%i /proc/self/fd/0)" = "$(stat -c %d:%i "$f")" ] || n
        exec head -c "$2"
    } <"$f" || t "$1"
}
