LC_ALL=C
export LC_ALL
# Tells why path $1 cannot be opened.
t() {
    f=$1
    while [ ! -e "$f" ] && [ ! -h "$f" ]; do f=${f%/*} f=${f:-/}; done
    if [ -d "$f" ] && [ ! -x "$f" ]; then
        echo 'Permission denied'
    elif [ "$f" = "$1" ] && [ -e "$f" ]; then
        echo 'The file cannot be opened'
    else
        echo 'No such file or directory'
    fi >&2
    exit 1
}
# Prints up to $2 bytes of path $1.
h() {
    [ -e "$1" ] || t "$1"
    { exec head -c "$2"; } <"$1" || t "$1"
}
