N='
'
LC_ALL=C TZ=UTC0 made=
export LC_ALL TZ
# Fails with a message.
n() {
    echo "$1" >&2
    (exit 1)
    u
}
# Enters directory $1; what is missing of it is left in m. A link is followed if $2 allows it and it was
# made by root where none but root can make or move one.
w() {
    m= k=0
    cd -P -- "$1" 2>/dev/null && [ "$PWD" = "$1" ] && return
    cd /
    m=${1#/}
    while [ -n "$m" ]; do
        c=${m%%/*} x=
        case $m in */*) x=${m#*/} ;; esac
        case $c in
        '' | .) m=$x; continue ;;
        ..) cd -P ..; m=$x; continue ;;
        esac
        if [ -h "./$c" ]; then
            l $2 $(stat -c '%u %a' . "./$c")
            k=$((k + 1))
            [ $k -le 40 ] || n "$c: Too many levels of symbolic links"
            y=$(readlink "./$c" && echo /) || exit
            y=${y%??}
            case $y in /*) cd / ;; esac
            m=$y/$x
            continue
        fi
        [ -d "./$c" ] || return 0
        y=${PWD%/}
        cd -P -- "./$c" || exit
        [ "$PWD" = "$y/$c" ] || n "$c: moved meanwhile"
        m=$x
    done
}
# Whether a link may be followed: $2 and $3 are owner and mode of its directory, $4 is its own owner.
l() {
    [ "$1" = 1 ] || n "$c: a link in the path, where rules on paths are set"
    case $2$4,$3 in
    00,1???) ;;
    00,*[2367]? | 00,*[2367]) n "$c: a link that others than root can change" ;;
    00,*) ;;
    *) n "$c: a link that others than root can change" ;;
    esac
}
# Makes and enters a private directory in the present one, under a name like $1; leaves the name in r.
g() {
    umask 077
    # Where others can change names, -m could be turned on what they put there instead.
    r=$1 k= y=
    [ -n "$shared" ] || y='-m 700'
    until mkdir $y "./$r" 2>/dev/null; do
        [ "$k" != 3 ] || { mkdir "./$r" && break || u; }
        k=$((k + 1)) r=$1$k
    done
    cd -P "./$r" 2>/dev/null
    [ -z "$shared" ] && return
    v && e || { cd -P ..; rmdir "./$r"; n 'the staging directory was replaced'; }
}
# Whether the present directory is this user's own, private, and in the directory whose identity was
# noted; default ACLs may have opened it.
v() {
    [ -O . ] || return
    set -- $(stat -c '%a %d:%i' . ..)
    [ "$4" = "$id" ] || return
    case $1 in *700) return ;; esac
    e && chmod 700 . && case $(stat -c %a .) in *700) ;; *) false ;; esac
}
# Whether the present directory is empty.
e() {
    for any in ./* ./.[!.]* ./..?*; do
        [ ! -e "$any" ] && [ ! -h "$any" ] || return
    done
}
# Notes the times and the identity of the present directory, and whether others can change names in it.
b() {
    x=$(stat -c '%a,%d:%i,%x,%y' .) || exit
    shared=1
    [ -O . ] && case ${x%%,*} in *[2367]? | *[2367]) ;; *) shared= ;; esac
    x=${x#*,}
    id=${x%%,*} x=${x#*,}
    accessed=${x%,*} modified=${x#*,}
}
# Sets them again.
a() {
    touch -m -d "$modified" . 2>/dev/null || touch -m -d "${modified%%.*}" .
    touch -a -d "$accessed" . 2>/dev/null || touch -a -d "${accessed%%.*}" .
} 2>/dev/null
# Removes what killed changes left here under names like $1, with $2 in them and nothing further, from age $3 on.
s() {
    for x in "./${1%?????}"*; do
        [ -O "$x" ] && [ ! -h "$x" ] && [ $(($(date +%s) - $(stat -c %Z "$x"))) -ge $3 ] || continue
        if [ -d "$x" ]; then
            (cd -P "$x" && v && rm -rf "./$2" && e && cd -P .. && rmdir "$x")
        elif [ -f "$x" ] && [ -z "$shared" ]; then
            rm -f "$x"
        fi
    done
} 2>/dev/null
# Fails with the last status and takes back the directories that were made.
u() {
    f=$?
    while [ -n "$made" ]; do
        c=${made##*/}
        made=${made%"$c"} made=${made%/}
        cd -P .. && b && rmdir "./$c" && a || break
    done
    exit $f
} 2>/dev/null
# The same from within a staging directory that holds $t or $name.
q() {
    f=$?
    rm -rf "./$t" "./$name"
    cd -P ..
    rmdir "./$r"
    a
    (exit $f)
    u
}
o() {
    echo 'file changed' >&2
    exit 73
}
# Plants: links directory name temporary inner mode owner stamp time sums size content
p() {
    made= z=0
    while w "$2" "$1" && [ -n "$m" ]; do
        [ -z "${10}" ] || o
        c=${m%%/*}
        [ ! -e "./$c" ] && [ ! -h "./$c" ] || n "$c: Not a directory"
        z=$((z + 1))
        [ $z -le 3 ] || n "$c: moved meanwhile"
        d "$4" "${5%% *}" "$7" || { [ $? = 9 ] && continue; exit 1; }
        made=${made:+$made/}$m
    done
    if [ -n "${10}" ]; then
        [ -f "./$3" ] && [ ! -h "./$3" ] || o
        h=$(sha256sum <"./$3") || exit
        case " ${10} " in
        *" ${h%% *} "*) ;;
        *) o ;;
        esac
    fi
    [ ! -d "./$3" ] || [ -h "./$3" ] || n "$3: Is a directory"
    b
    s "$4" $5
    g "$4"
    t=${5%% *} name=$3
    set -C
    if [ -n "${11}" ]; then
        base64 -d >"./$t" || q
        [ $(wc -c <"./$t") -eq "${11}" ] || { echo 'short write' >&2; (exit 74); q; }
    else
        printf %b "${12}" >"./$t" || q
    fi
    chmod "$6" "./$t" || q
    if [ -n "$8" ]; then
        touch -d "$8" "./$t" 2>/dev/null || touch -d "${8%.*}" "./$t" || q
        x=${9%.*}
        case $x in
        -* | ???????????* | [2-9]?????????)
            [ "$(stat -c %Y "./$t")" = "$x" ] ||
                { echo 'the file system knows no such time' >&2; (exit 1); q; }
            ;;
        esac
    fi
    [ -z "$7" ] || chown -- "$7" "./$t" || q
    i "$t" "$3" || q
    cd -P ..
    rmdir "./$r"
    a
}
# Gives the staged $1 the name $2 in the directory above, where nothing is followed or entered.
i() {
    mv -f -T "./$1" "../$2" 2>/dev/null || { mv -f "./$1" "./$2" && mv -f "./$2" ..; }
}
# Makes the missing directories m: staged, then moved to their place as one; status 9 where something is there.
d() (
    b
    o=$(umask)
    g "$1"
    umask "$o"
    c=${m%%/*} x=
    case $m in */*) x=/${m#*/} ;; esac
    mkdir "./$2" && { [ -z "$x" ] || mkdir -p "./$2$x"; } && { [ -z "$3" ] || chown -R -- "$3" "./$2"; } &&
        { [ ! -e "../$c" ] && [ ! -h "../$c" ] || (exit 9); } && i "$2" "$c"
    f=$?
    rm -rf "./$2" "./$c"
    cd -P ..
    rmdir "./$r"
    a
    exit $f
)
# Removes: links directory name temporary inner
r() {
    w "$2" "$1"
    [ -z "$m" ] && { [ -e "./$3" ] || [ -h "./$3" ]; } || return 0
    b
    s "$4" $5
    rm -f "./$3"
    f=$?
    a
    return $f
}
read -r code
if [ -z "$code" ]; then
    read -r l || exit 74
    # Tells that the call arrived and is being run.
    printf .
    eval "$l"
    exit
fi
i=0
while read -r l; do
    h=$(eval "$l" 2>&1 </dev/null)
    printf '%s\n%s %s %s\n' "$h" "$code" $i $?
    i=$((i + 1))
done
