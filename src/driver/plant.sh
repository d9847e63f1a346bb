p() {
    f=$1 d=$2 t=$3 mask=$4 mode=$5 owner=$6 stamp=$7 old=$8
    shift 8
    if [ -n "$old" ]; then
        h=
        [ -f "$f" ] && [ ! -h "$f" ] && h=$(sha256sum <"$f" | cut -c1-64)
        case " $old " in
        *" ${h:-none} "*) ;;
        *) echo 'file changed' >&2; exit 73 ;;
        esac
    fi
    n=$d m=
    while [ ! -e "$n" ] && [ ! -h "$n" ]; do m=$n; n=${n%/*}; [ -n "$n" ] || n=/; done
    [ -d "$d" ] || mkdir -p -- "$d" || u
    set -C
    umask "$mask"
    if [ -n "$1" ]; then
        base64 -d >"$t" || u
        [ $(wc -c <"$t") -eq "$1" ] || { echo 'short write' >&2; (exit 74); u; }
    else
        printf %b "$2" >"$t" || u
    fi
    if [ -n "$owner" ]; then
        chown -- "$owner" "$t" || u
        n=$d
        while [ -n "$m" ]; do chown -- "$owner" "$n" || u; [ "$n" = "$m" ] && break; n=${n%/*}; done
    fi
    [ -z "$mode" ] || chmod "$mode" "$t" || u
    [ -z "$stamp" ] || TZ=UTC0 touch -t "$stamp" "$t" || u
    [ -h "$f" ] && [ -d "$f" ] && rm -f -- "$f"
    [ ! -d "$f" ] || { echo 'Is a directory' >&2; (exit 1); u; }
    mv -f -- "$t" "$f" || u
}
u() {
    r=$?
    rm -f -- "$t"
    while [ -n "$m" ]; do
        rmdir -- "$d" 2>/dev/null || [ ! -e "$d" ] || break
        [ "$d" = "$m" ] && break
        d=${d%/*}
    done
    exit $r
}
